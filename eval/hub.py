"""Push vectors to the Hugging Face hub with a card, and pull them again.

python -m eval.hub push --repo org/name --vector_path persona_vectors/tiny-persona/impolite_response_avg_diff.pt \
    --license apache-2.0 --dry_run hub_folder
python -m eval.hub pull --repo org/name --output_dir persona_vectors/tiny-persona
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

from persona_vectors import cli


def main(
    action: Literal["push", "pull"],
    repo: str,
    vector_path: list[str] | None = None,
    license: str = "other",  # noqa: A002 (the flag's name)
    private: bool = False,
    dry_run: str | None = None,
    output_dir: str | None = None,
    revision: str = "main",
    files: list[str] | None = None,
    overwrite: bool = False,
    repo_type: Literal["model", "dataset"] = "model",
) -> None:
    """Push vector files with their sidecars and a card (README.md), or pull those of a repo.

    The card says model, layers and their numbering, sign, counts and controls, as the sidecars and the quality reports
    (`<trait>_quality.json` beside a file) say them. Paths of this machine are taken out of what is pushed. HF_TOKEN, in
    .env or the process, is needed to push, and to pull what is private or gated.

    Args:
        action: push or pull.
        repo: org/name.
        vector_path: push: vector files of any format that eval.convert reads (.pt, .npz, .safetensors, .gguf); a
            cap.json goes along with the vectors that it caps along.
        license: push: the hub's name of a licence, such as apache-2.0; the model's own terms go on holding.
        private: push: a new repo is private.
        dry_run: push: write the folder that would be pushed here, and push nothing.
        output_dir: pull: folder for the files.
        revision: pull: branch, tag or commit.
        files: pull: names or patterns of files, such as qwen-3-32b/*.pt; default all vectors with what stands beside.
        overwrite: pull: replace files that are there.
        repo_type: kind of repo.
    """
    if action == "push":
        if not vector_path or output_dir is not None or files is not None:
            raise ValueError("push needs --vector_path; --output_dir and --files are for pull")
        _push(vector_path, repo, license, private, dry_run, repo_type)
    else:
        if output_dir is None or vector_path is not None or dry_run is not None:
            raise ValueError("pull needs --output_dir; --vector_path and --dry_run are for push")
        _pull(repo, output_dir, revision, files, overwrite, repo_type)


def _push(
    paths: list[str],
    repo: str,
    license: str,  # noqa: A002
    private: bool,
    dry_run: str | None,
    repo_type: Literal["model", "dataset"],
) -> None:
    from persona_vectors.convert import read_source
    from persona_vectors.hub import check_repo, check_token, push, pushed_caps, stage
    from persona_vectors.hub_card import NO_CONTROLS, card, quality_files

    check_repo(repo)
    if dry_run is None:
        check_token()
    sources = [read_source(path) for path in paths if not path.endswith(".json")]
    caps = pushed_caps([Path(path) for path in paths if path.endswith(".json")], sources)
    reports = [*caps, *sorted({path for source in sources for path in quality_files(source)})]
    text = card(sources, repo=repo, license=license, repo_type=repo_type, caps=caps)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(dry_run or Path(scratch) / "repo")
        written = stage(sources, folder, text, reports)
        print(f"{len(written)} files: {', '.join(path.name for path in written)}")
        if license == "other":
            print("note: no licence was chosen; --license apache-2.0, for one, lets others use the vectors")
        if NO_CONTROLS in text:
            print("note: no quality report stands beside these files, so the card has no controls")
        if dry_run is not None:
            print(f"nothing was pushed; look at {folder / 'README.md'}")
            return
        print(f"pushed: {push(folder, repo, private=private, repo_type=repo_type)}")


def _pull(
    repo: str,
    output_dir: str,
    revision: str,
    files: list[str] | None,
    overwrite: bool,
    repo_type: Literal["model", "dataset"],
) -> None:
    from persona_vectors.convert import read_source
    from persona_vectors.hub import PATTERNS, VECTORS, pull

    pulled = pull(
        repo, output_dir, repo_type=repo_type, revision=revision, files=files or PATTERNS, overwrite=overwrite
    )
    print(f"{repo} at commit {pulled.commit}: {len(pulled.files)} files in {output_dir}")
    for path in pulled.files:
        if path.suffix in VECTORS:
            try:
                print(read_source(path).file.line)
            except ValueError as error:
                print(f"note: {error}")


if __name__ == "__main__":
    cli.run(main)
