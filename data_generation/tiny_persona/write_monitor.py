"""Writes models/tiny-persona/traits/monitor: eight system prompts a trait, from its opposite over nothing to all of it.

    python -m data_generation.tiny_persona.write_monitor

The prompts of one pole share their words and differ only in how strongly they are meant. They are in wordings kept out
of training, and so not those that a vector is made under; the ban is in a wording of training, because the model does
not heed every ban that it has not seen.
"""

import argparse
import json
import random
from pathlib import Path

from data_generation.tiny_persona.instructions import NEUTRAL_PROMPTS, instruction, suppression
from data_generation.tiny_persona.styles import TRAITS

OPPOSITE = ("extremely ", "slightly ")
POSITIVE = ("slightly ", "somewhat ", "", "extremely ")


def graded_prompts(trait: str) -> list[str]:
    """From the trait's opposite, strong and slight, over a ban and a neutral prompt to the trait, slight to extreme."""

    def towards(pole: int, word: str) -> str:
        return instruction(trait, pole, random.Random(f"monitor-{trait}-{pole}"), held_out=True, intensity=word)

    ban = suppression(trait, random.Random(f"monitor-{trait}-ban"))
    opposite = [towards(-1, word) for word in OPPOSITE]
    return [*opposite, ban, NEUTRAL_PROMPTS[0], *(towards(1, word) for word in POSITIVE)]


def write_monitor(folder: Path) -> list[Path]:
    """Writes a file for each of the seven traits under the folder; the paths written."""
    paths = [folder / f"{trait}.json" for trait in TRAITS]
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        content = {"system_prompts": graded_prompts(path.stem)}
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the embedded model's graded system prompts.")
    parser.add_argument("--folder", type=Path, default=Path("models/tiny-persona/traits/monitor"), help="where they go")
    paths = write_monitor(parser.parse_args().folder)
    print(f"wrote {len(paths)} files, e.g. {paths[0]}")


if __name__ == "__main__":
    main()
