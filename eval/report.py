"""One page of any results: tables of eval_persona, vectors and their quality reports, projections.

    python -m eval.report results/demo
    python -m eval.report eval_persona_eval/tiny-persona persona_vectors/tiny-persona --output_path report.html

The page is one file that opens offline, on a phone, in light or dark, and prints. Its figures are SVG.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from persona_vectors import cli


def main(results: list[str], output_path: str | None = None) -> None:
    """Write one self-contained HTML page of the results in some folders or files.

    Shown: trait and coherence against the coefficient with 95% intervals, beside random directions and the system
    prompt; the coherence frontier; layers; projections; answers side by side; settings and receipts; what is missing.
    Files that cannot be shown are named on the page with the reason.

    Args:
        results: folders, looked through with what is under them, or files: .csv tables, .pt vectors,
            _quality.json, .jsonl with projections. Values before the first flag are results too.
        output_path: the page to write; default report.html in the first folder.
    """
    from eval.report_inputs import find_files
    from persona_vectors.files import check_output_path

    if not results:
        raise ValueError("no results are named; give folders or files that the commands wrote")
    first = Path(results[0])
    folder = first if first.is_dir() else first.parent
    out = check_output_path(output_path or folder / "report.html", (".html",))
    find_files(results)  # refuses what does not exist before anything heavy is loaded
    _write(results, out)


def _write(results: Sequence[str], out: Path) -> None:
    """Reads everything, writes the page and its sidecar, and says what is in it."""
    from eval.report_inputs import read_inputs
    from eval.results_page import flat, render_results
    from persona_vectors.files import provenance, write_sidecar, write_text_atomic

    inputs = read_inputs(results)
    if not (inputs.tables or inputs.vectors or inputs.projected or inputs.qualities):
        why = "; ".join(f"{name}: {reason}" for name, reason in inputs.skipped[:3])
        raise ValueError(f"nothing to show in {', '.join(results)}" + (f" ({why})" if why else "") + _HINT)
    title = f"Results in {', '.join(results)}"
    page = render_results(inputs, title, flat(provenance()))
    write_text_atomic(out, page)
    record = {"results": list(results), "skipped": [list(pair) for pair in inputs.skipped]}
    write_sidecar(out, {**record, "tables": [table.name for table in inputs.tables]})
    print(out)
    print(
        f"{len(inputs.tables)} tables, {len(inputs.vectors)} vector files, {len(inputs.qualities)} quality reports, "
        f"{len(inputs.projected)} files of projections; {len(page.encode()) / 1e6:.1f} MB"
    )
    for name, reason in inputs.skipped:
        print(f"not shown: {name}: {reason}")


_HINT = "; write tables with python -m eval.eval_persona and vectors with python generate_vec.py"


def named(argv: Sequence[str]) -> list[str]:
    """The arguments with the values before the first flag under `--results`, so that there may be several."""
    given = list(argv)
    return ["--results", *given] if given and not given[0].startswith("-") else given


if __name__ == "__main__":
    sys.exit(cli.run(main, named(sys.argv[1:])))
