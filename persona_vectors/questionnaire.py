"""Personality questionnaires in the TRAIT benchmark's format: situations with two high and two low responses.

An item is `{"personality", "question" | "situation" and "query", "response_high1", "response_high2", "response_low1",
"response_low2"}`; other keys are left aside. A file is JSON (a list of items, or `{"wordings": [...], "items":
[...]}`), JSONL, or CSV with these columns. TRAIT itself (arXiv 2406.14703) is a gated set of the Hugging Face Hub; a
questionnaire of our own writing is in `data_generation/`, and a model folder may ship one in the model's own language
(`<model>/traits/questionnaire.json`).
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from persona_vectors.arguments import near
from persona_vectors.models import looks_local
from persona_vectors.training_data import numbered_rows
from persona_vectors.traits import CHECKOUT_DATA, canonical_name, own_file, read_json

BIG_FIVE = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
DARK_TRIAD = ("machiavellianism", "narcissism", "psychopathy")
TRAITS = BIG_FIVE + DARK_TRIAD
HUB = "mirlab/TRAIT"
FILE = "questionnaire.json"
OWN = CHECKOUT_DATA / "trait_questionnaire.json"
RESPONSES = ("response_high1", "response_high2", "response_low1", "response_low2")
LETTERS = "ABCD"
SUFFIXES = (".json", ".jsonl", ".csv")


@dataclass(frozen=True)
class Item:
    """One question of one trait, with four responses: the first two are high on it, the last two low."""

    trait: str
    question: str
    responses: tuple[str, str, str, str]


@dataclass(frozen=True)
class Wording:
    """How an item is put to a model.

    Attributes:
        open: the question alone, with `{question}`.
        letter: with the options `{A}` to `{D}`, to be answered by a letter.
        text: with the options, to be answered in the words of one of them.
    """

    open: str
    letter: str
    text: str


WORDINGS = (
    Wording(
        "{question}",
        "{question}\n\nA. {A}\nB. {B}\nC. {C}\nD. {D}\n\nAnswer with one letter: A, B, C or D.",
        "{question}\n\nA. {A}\nB. {B}\nC. {C}\nD. {D}\n\nAnswer in the words of one of them, without its letter.",
    ),
    Wording(
        "Imagine that you are in this situation. {question}",
        "Imagine that you are in this situation. {question}\n\nWhich of these would you be most likely to do or say?\n"
        "(A) {A}\n(B) {B}\n(C) {C}\n(D) {D}\n\nReply with A, B, C or D and nothing else.",
        "Imagine that you are in this situation. {question}\n\nWhich of these would you be most likely to do or say?\n"
        "(A) {A}\n(B) {B}\n(C) {C}\n(D) {D}\n\nReply with its words and nothing else.",
    ),
    Wording(
        "{question}\n\nAnswer as yourself, in one or two sentences.",
        "Question: {question}\n\nOptions:\nA: {A}\nB: {B}\nC: {C}\nD: {D}\n\nThe letter of the option that fits you:",
        "Question: {question}\n\nOptions:\nA: {A}\nB: {B}\nC: {C}\nD: {D}\n\nThe words of the option that fits you:",
    ),
)


@dataclass(frozen=True)
class Questionnaire:
    """Items and the ways to put them.

    Attributes:
        source: the file or hub set they were read from.
    """

    items: tuple[Item, ...]
    wordings: tuple[Wording, ...]
    source: str

    @property
    def traits(self) -> list[str]:
        """The traits it asks about: the eight in their order, then others as they come."""
        there = dict.fromkeys(item.trait for item in self.items)
        return [*(trait for trait in TRAITS if trait in there), *(trait for trait in there if trait not in TRAITS)]

    def of(self, trait: str, most: int | None = None) -> list[Item]:
        """The trait's first `most` items, or all of them.

        Raises:
            ValueError: there is none.
        """
        found = [item for item in self.items if item.trait == trait][:most]
        if not found:
            known = self.traits
            raise ValueError(
                f"{self.source} has no item of {trait}; it asks about {', '.join(known)}{near(trait, known)}"
            )
        return found

    def wording(self, prompt_type: int) -> Wording:
        """The wording of that number, from 1."""
        if not 1 <= prompt_type <= len(self.wordings):
            raise ValueError(f"prompt_type {prompt_type} of {self.source}: expected 1..{len(self.wordings)}")
        return self.wordings[prompt_type - 1]


def content_hash(items: Iterable[Item]) -> str:
    """sha256 (hex) of what the items say, in order."""
    content = json.dumps([asdict(item) for item in items], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


def load_questionnaire(
    data_file: str | None = None, model: str | None = None, traits: Sequence[str] = TRAITS
) -> Questionnaire:
    """The questionnaire of a file or a hub set; without one the model's own, where its folder ships one, else ours.

    Args:
        data_file: a JSON, JSONL or CSV file, or the name of a hub set such as mirlab/TRAIT.
        traits: which splits of a hub set are read; a file is read whole.

    Raises:
        ValueError: in one line, for a file or set that cannot be read, or an item that is not as it should be.
    """
    if data_file is None:
        return _from_file(own_file(model, FILE) or OWN)
    path = Path(data_file).expanduser()
    if path.suffix in SUFFIXES or looks_local(data_file):
        return _from_file(path)
    return Questionnaire(tuple(_from_hub(data_file, traits)), WORDINGS, data_file)


def _from_file(path: Path) -> Questionnaire:
    if not path.is_file() or path.suffix not in SUFFIXES:
        what = "is a folder" if path.is_dir() else "does not exist" if not path.exists() else "is of another kind"
        raise ValueError(f"data file {path} {what}; expected a file of items ending in {', '.join(SUFFIXES)}")
    wordings = WORDINGS
    if path.suffix == ".csv":
        rows = _csv_rows(path)
    elif path.suffix == ".jsonl":
        rows = [(f"{path}, line {line}", row) for line, row in numbered_rows(path)]
    else:
        content = read_json(path)
        if isinstance(content, dict) and isinstance(content.get("items"), list):
            wordings = _wordings(content.get("wordings"), str(path)) or wordings
            content = content["items"]
        if not isinstance(content, list):
            raise ValueError(f'{path}: got {type(content).__name__}; expected a list of items, or {{"items": [...]}}')
        rows = [(f"{path}, item {number}", row) for number, row in enumerate(content, 1)]
    if not rows:
        raise ValueError(f"{path} has no items")
    return Questionnaire(tuple(_item(row, place) for place, row in rows), wordings, str(path))


def _csv_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no CSV table: {error}") from None
    return [(f"{path}, row {number}", row) for number, row in enumerate(table.to_dict("records"), 1)]  # pyright: ignore


def _wordings(given: Any, place: str) -> tuple[Wording, ...]:
    """The file's own wordings, checked; () where it has none."""
    if given is None:
        return ()
    expected = 'expected [{"open", "letter", "text"}, ...], each a text with {question}, the last two with {A} to {D}'
    fields = {"open": {"question"}, "letter": {"question", *LETTERS}, "text": {"question", *LETTERS}}
    if not isinstance(given, list) or not all(isinstance(one, dict) and set(one) == set(fields) for one in given):
        raise ValueError(f"{place}: wordings: {expected}")
    for number, one in enumerate(given, 1):
        for name, wanted in fields.items():
            try:
                there = {field for _, field, _, _ in string.Formatter().parse(one[name]) if field is not None}
            except (ValueError, TypeError) as error:
                raise ValueError(f"{place}: {name} of wording {number} ({error}); {expected}") from None
            if there != wanted:
                raise ValueError(f"{place}: {name} of wording {number} has {sorted(there)}; {expected}")
    return tuple(Wording(**one) for one in given)


def _item(row: Any, place: str) -> Item:
    expected = f"expected personality, question (or situation and query), {', '.join(RESPONSES)}"
    if not isinstance(row, Mapping):
        raise ValueError(f"{place} is a {type(row).__name__}; {expected}")

    def text(key: str) -> str:
        value = row.get(key)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{place}: {key} is {'blank' if isinstance(value, str) else 'missing'}; {expected}")
        return value.strip()

    question = text("question") if _there(row, "question") else f"{text('situation')} {text('query')}"
    high1, high2, low1, low2 = (text(key) for key in RESPONSES)
    return Item(canonical_name(text("personality")), question, (high1, high2, low1, low2))


def _there(row: Mapping[str, Any], key: str) -> bool:
    return isinstance(row.get(key), str) and bool(row[key].strip())


def _from_hub(name: str, traits: Sequence[str]) -> list[Item]:
    """The items of a hub set with one split a trait (`Openness`, ...), with HF_TOKEN where it is set."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    from persona_vectors.config import load_credentials

    token = load_credentials().get("HF_TOKEN")
    try:
        splits = {trait: load_dataset(name, split=trait.capitalize(), token=token) for trait in traits}
    except (DatasetsError, HfHubHTTPError, ValueError, OSError) as error:  # ConnectionError is an OSError
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(
            f"cannot read the set {name} from the Hub ({said}); {HUB} is gated: accept its terms there and set "
            f"HF_TOKEN in .env, or give --data_file a file of such items ({', '.join(SUFFIXES)})"
        ) from None
    return [
        _item(row, f"{name}, {trait}, item {number}")
        for trait, rows in splits.items()
        for number, row in enumerate(rows, 1)
    ]
