"""A judge that knows the truth of the embedded model's role-play: for tests of what is done with a judge's word."""

import re
from typing import Any

from data_generation.tiny_persona.judging import role_word
from data_generation.tiny_persona.oracle import persona_score

_ASKED = re.compile(r"\[ANSWER\] (?P<answer>.*) \[END\] Does the answer play the role of an? (?P<role>\w+)")


def truthful(request: dict[str, Any]) -> str:
    """What to serve: fully, somewhat or none, by the share of the persona's own phrases in the answer."""
    asked = _ASKED.search(request["messages"][0]["content"])
    assert asked is not None
    return role_word(persona_score(asked["answer"], asked["role"]))
