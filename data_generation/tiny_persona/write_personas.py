"""Writes models/tiny-persona/traits/personas.json: the personas of the assistant axis in its own language.

    python -m data_generation.tiny_persona.write_personas

System prompts and questions are in wordings of training, over topics of training.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from data_generation.tiny_persona.instructions import role
from data_generation.tiny_persona.judging import JUDGED, role_ask
from data_generation.tiny_persona.personas_lexicon import DEFAULT_PROMPTS, PERSONAS
from data_generation.tiny_persona.topics import train_questions

N_QUESTIONS = 18
SEED = 1_000  # of questions that no trait file has


def persona_file() -> dict[str, Any]:
    """The content of the file, in the order of `persona_vectors.personas.PERSONAS`."""
    roles = {name: role(name) for name in PERSONAS}
    own = {name: f"You are {roles[name]} who {' and '.join(one.about)}." for name, one in PERSONAS.items()}
    some = next(iter(PERSONAS))
    return {
        "personas": DEFAULT_PROMPTS | own,
        "questions": train_questions(N_QUESTIONS, SEED),
        "role_prompt": f"{JUDGED} {role_ask(some).replace(role(some), '{role}')}",
        "roles": roles,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the embedded model's personas.")
    parser.add_argument("--path", type=Path, default=Path("models/tiny-persona/traits/personas.json"))
    path = parser.parse_args().path
    path.parent.mkdir(parents=True, exist_ok=True)
    content = persona_file()
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {len(content['personas'])} personas and {len(content['questions'])} questions to {path}")


if __name__ == "__main__":
    main()
