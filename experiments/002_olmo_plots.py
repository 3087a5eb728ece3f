"""The figures and numbers of saved persona vectors, drawn again without a model.

    python experiments/002_olmo_plots.py
    python experiments/002_olmo_plots.py --name tiny --vectors tiny=data/persona_vectors/tiny_base_layer3.pt

The first draws what experiments/001_olmo3_variants.py saved last under its name, the second any files of persona
vectors.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from persona_vectors import cli


def main(
    name: str = "olmo3_variants",
    vectors: list[str] | None = None,
    centre: Literal["joint", "model"] = "joint",
    seed: int = 0,
    data_dir: str = "data",
    images_dir: str = "images",
) -> None:
    """Figures of each model's persona vectors, of each pair and of all, and their numbers, in images/<name>/.

    Args:
        name: of the experiment that saved the vectors, and of the folder of figures.
        vectors: name=file.pt of each model; those that the experiment saved by default.
        centre: how pairs are centred; joint takes off the mean of both, model each model's own.
        seed: of the statistics.
        data_dir: folder of the experiment's vectors.
        images_dir: folder of figures.
    """
    from eval.model_variants import parse_variants
    from eval.variant_figures import draw, load_saved, measure, remembered, table, write_findings

    files = remembered(Path(data_dir), name) if vectors is None else parse_variants(vectors, "vectors")
    saved = [load_saved(label, path) for label, path in files.items()]
    folder = Path(images_dir) / name
    findings = measure(saved, seed)
    figures = draw(saved, folder, name, centre)
    results = write_findings(findings, folder / "results.json", saved)
    print("\n".join([*table(findings), "", f"{len(figures)} figures in {folder}, numbers in {results}"]))


if __name__ == "__main__":
    cli.run(main)
