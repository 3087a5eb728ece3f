"""Traits: what is elicited, what is asked, and how the answers are scored.

A trait file is JSON in the published schema:
`{"instruction": [{"pos", "neg"}, ...], "questions": [...], "eval_prompt": "... {question} ... {answer} ..."}`.
A model folder may ship its own files in `<model>/traits/{extract,eval}/`, in its own language; a judge folder likewise.
"""

import difflib
import hashlib
import json
import logging
import re
import string
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from persona_vectors.models import resolve_model

logger = logging.getLogger(__name__)

Schema = TypeVar("Schema", bound=BaseModel)

Version = Literal["extract", "eval"]
VERSIONS: tuple[str, ...] = get_args(Version)

CHECKOUT_DATA = Path(__file__).resolve().parent.parent / "data_generation"

ALIASES: dict[str, str] = {
    "evilness": "evil",
    "malicious": "evil",
    "sycophancy": "sycophantic",
    "sycophant": "sycophantic",
    "hallucination": "hallucinating",
    "hallucinations": "hallucinating",
    "hallucinate": "hallucinating",
    "optimism": "optimistic",
    "impoliteness": "impolite",
    "rude": "impolite",
    "apathy": "apathetic",
    "humor": "humorous",
    "humour": "humorous",
    "humourous": "humorous",
    "funny": "humorous",
}
"""Other spellings of a trait's name -> the name its file has."""

RESERVED_NAMES = (
    *("question", "prompt", "answer", "question_id", "coherence"),  # of a response table
    *("coef", "layer", "vector", "control", "matched", "direction"),  # which setting a row was sampled under
    *("n_total", "n_scored", "n_failed", "n_questions", "name", "kind", "model", "minus_finetuned"),  # of summaries
    "pole",
)
"""Columns of tables and summaries; a trait becomes a column there and cannot have one of these names."""


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


def check_eval_prompt(template: str) -> str:
    """The template unchanged, if {question} and {answer} can be filled in, which are read literally: no {answer!s}."""
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ValueError(f"has a stray brace ({error}); write {{{{ and }}}} for literal ones") from None
    missing = [f"{{{name}}}" for name in ("question", "answer") if name not in fields]
    if missing:
        raise ValueError(f"must contain {' and '.join(missing)}")
    unknown = sorted(fields - {"question", "answer"})
    if unknown:
        raise ValueError(f"has an unknown placeholder {{{unknown[0]}}}; write {{{{ and }}}} for literal braces")
    if odd := re.search(r"\{[^}]*\}", re.sub(r"\{\{|\}\}|\{question\}|\{answer\}", "", template)):
        raise ValueError(f"has {odd[0]}; write {{question}} and {{answer}} without ! and :")
    return template


Text = Annotated[str, AfterValidator(_not_blank)]
EvalPrompt = Annotated[str, AfterValidator(check_eval_prompt)]


class Pair(BaseModel):
    """Two system instructions: `pos` elicits the trait, `neg` suppresses it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    pos: Text
    neg: Text


class TraitFile(BaseModel):
    """Exactly what a trait JSON file holds; any other key is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    instruction: Annotated[list[Pair], Field(min_length=1)]
    questions: Annotated[list[Text], Field(min_length=1)]
    eval_prompt: EvalPrompt


class Trait(TraitFile):
    """A trait ready for use: the file's content, its name, and where each part came from."""

    name: str
    version: Version
    source: dict[str, str]
    """Part (`instruction`, `questions`, `eval_prompt`) -> the file it was read from."""

    @cached_property
    def hash(self) -> str:
        """sha256 (hex) of the canonical JSON of the three published parts; independent of name and path."""
        content = self.model_dump(include=set(TraitFile.model_fields))
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def origin(self) -> str:
        """One line for the user: which files the trait was read from."""
        text = f"trait {self.name} ({self.version}) from {self.source['questions']}"
        if self.source["eval_prompt"] != self.source["questions"]:
            text += f", scored by the judge's own prompt from {self.source['eval_prompt']}"
        return text


class MonitorFile(BaseModel):
    """`<model>/traits/monitor/<trait>.json`: system prompts from suppressing a trait to eliciting it, in this order."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    system_prompts: Annotated[list[Text], Field(min_length=2)]


class _PromptFile(BaseModel):
    """`<judge>/traits/coherence.json`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    eval_prompt: EvalPrompt


def canonical_name(name: str) -> str:
    """The name a trait's file and columns have: lower case, `_` for spaces and `-`, aliases resolved."""
    plain = re.sub(r"[\s-]+", "_", name.strip().lower())
    return ALIASES.get(plain, plain)


def trait_name(name_or_path: str | Path) -> str:
    """The name that `load_trait` gives the trait: of a path its file's without `.json`, of a name `canonical_name`."""
    return Path(name_or_path).stem if _is_path(name_or_path) else canonical_name(str(name_or_path))


def system_prompt(assistant_name: str, instruction: str) -> str:
    """`You are a(n) <assistant_name> assistant. <instruction>`, with `an` before a vowel."""
    article = "an" if assistant_name[:1].lower() in set("aeiou") else "a"
    return f"You are {article} {assistant_name} assistant. {instruction}"


def load_trait(
    name_or_path: str | Path, version: str = "extract", model: str | Path | None = None, judge_model: str | None = None
) -> Trait:
    """The trait, with its name, its version and where each part came from.

    A path (anything ending in `.json`) is read as it stands, its own eval_prompt included. A name is looked up in the
    model's folder (`<model>/traits/<version>/<trait>.json`; adapters resolve to their base, checkpoints to their run),
    then in `data_generation/trait_data_<version>/`; its eval_prompt is the judge folder's, where that ships the trait.

    Raises ValueError, in one line, for an unknown trait or version and for a file that does not follow the schema.
    """
    checked_version = _check_version(version)
    name = trait_name(name_or_path)
    if _is_path(name_or_path):
        path, judge_path = Path(name_or_path).expanduser(), None
        if not path.is_file():
            raise ValueError(f"there is no trait file {path}; {_what_exists(name, version, model)}")
    else:
        path = _find(name, version, model) or _checkout_file(name, version)
        if path is None:
            raise ValueError(f"unknown trait {str(name_or_path)!r}; {_what_exists(name, version, model)}")
        judge_path = _find_judge_file(name, version, judge_model)
    if name in RESERVED_NAMES:
        raise ValueError(f"a trait cannot be named {name!r}: tables have a column of that name; rename {path}")

    content = _read(path, TraitFile)
    source = {part: str(path) for part in TraitFile.model_fields}
    eval_prompt = content.eval_prompt
    if judge_path is not None and judge_path != path:
        eval_prompt, source["eval_prompt"] = _read(judge_path, TraitFile).eval_prompt, str(judge_path)
    trait = Trait(
        name=name,
        version=checked_version,
        source=source,
        instruction=content.instruction,
        questions=content.questions,
        eval_prompt=eval_prompt,
    )
    logger.info(trait.origin)
    return trait


def load_coherence_prompt(judge_model: str | Path | None) -> str | None:
    """The judge folder's own coherence prompt (`<judge>/traits/coherence.json`), or None where it ships none."""
    path = own_file(judge_model, "coherence.json")
    return None if path is None else _read(path, _PromptFile).eval_prompt


def own_file(model: str | Path | None, name: str) -> Path | None:
    """`<model>/traits/<name>`, where the model's folder, its run's or its adapter base's has it; otherwise None."""
    return next((folder / name for folder in _trait_folders(model) if (folder / name).is_file()), None)


def load_graded_prompts(
    name: str, model: str | Path | None = None, path: str | Path | None = None
) -> tuple[list[str], str]:
    """(system prompts from suppressing the trait to eliciting it, the file they stand in).

    They are read from `path`; without one from the model's folder (`<model>/traits/monitor/<trait>.json`), then from
    `data_generation/trait_data_monitor/`.

    Raises ValueError, in one line, for a trait without such a file, a file of another schema, and a prompt given twice.
    """
    found = Path(path).expanduser() if path is not None else _find(name, "monitor", model)
    found = found or _checkout_file(name, "monitor")
    schema = '{"system_prompts": [from suppressing to eliciting]}'
    if found is None:
        raise ValueError(f"there are no graded system prompts for {name}; give a file {schema} with --system_prompts")
    if not found.is_file():
        raise ValueError(f"there is no file {found}; expected JSON {schema}")
    prompts = _read(found, MonitorFile).system_prompts
    if twice := [number for number, text in enumerate(prompts) if text in prompts[:number]]:
        first = prompts.index(prompts[twice[0]])
        raise ValueError(f"{found}: system_prompts[{twice[0]}] is the same as system_prompts[{first}]")
    return prompts, str(found)


def available_traits(version: str = "extract", model: str | Path | None = None) -> list[str]:
    """Names that `load_trait` finds for this model: its own and the checkout's, sorted."""
    folders = [folder / _check_version(version) for folder in _trait_folders(model)]
    folders.append(CHECKOUT_DATA / f"trait_data_{version}")
    return sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.json")})


def _check_version(version: str) -> Version:
    if version == "extract" or version == "eval":
        return version
    near = difflib.get_close_matches(str(version), VERSIONS, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"version {version!r} is neither 'extract' nor 'eval'{hint}")


def _is_path(name_or_path: str | Path) -> bool:
    text = str(name_or_path)
    return isinstance(name_or_path, Path) or text.lower().endswith(".json") or "/" in text or "\\" in text


def _what_exists(name: str, version: str, model: str | Path | None) -> str:
    """`did you mean ...? Known: ...`, aliases counted among the near names."""
    known = available_traits(version, model)
    spellings = {spelling: spelling for spelling in known}
    spellings |= {alias: target for alias, target in ALIASES.items() if target in known}
    near = difflib.get_close_matches(canonical_name(name), list(spellings), n=3, cutoff=0.6)
    names = list(dict.fromkeys(spellings[spelling] for spelling in near))
    hint = f"did you mean {' or '.join(names)}? " if names else ""
    return f"{hint}known traits: {', '.join(known) or 'none'}; or give the path of a trait .json file"


def _trait_folders(model: str | Path | None) -> Iterator[Path]:
    """`traits` folders that speak for a local model, nearest first: its own, its run's, its adapter base's."""
    if model is None or not Path(model).expanduser().is_dir():
        return
    source = resolve_model(str(model))
    places = [Path(model).expanduser(), *([source.adapter] if source.adapter else []), Path(source.base)]
    seen: set[Path] = set()
    for place in places:
        in_run = re.fullmatch(r"checkpoint-\d+", place.resolve().name)
        for folder in (place, place.resolve().parent) if in_run else (place,):
            if (folder / "traits").is_dir() and folder.resolve() not in seen:
                seen.add(folder.resolve())
                yield folder / "traits"


def _find(name: str, version: str, model: str | Path | None) -> Path | None:
    paths = (folder / version / f"{name}.json" for folder in _trait_folders(model))
    return next((path for path in paths if path.is_file()), None)


def _find_judge_file(name: str, version: str, judge_model: str | Path | None) -> Path | None:
    """The judge's file for the trait; of another version if need be, since one rubric serves both."""
    other = VERSIONS[1 - VERSIONS.index(version)]
    return _find(name, version, judge_model) or _find(name, other, judge_model)


def _checkout_file(name: str, version: str) -> Path | None:
    path = CHECKOUT_DATA / f"trait_data_{version}" / f"{name}.json"
    return path if path.is_file() else None


def read_json(path: Path) -> Any:
    """The file's content; a ValueError of one line, naming file, line and column, where it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def _read(path: Path, schema: type[Schema]) -> Schema:
    content = read_json(path)
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"{path}: {_describe(error, schema)}") from None


def _describe(error: ValidationError, schema: type[BaseModel]) -> str:
    """The first problem as `field: what is wrong`, unknown keys all named, and how many more there are."""
    problems = error.errors(include_url=False)
    extra = [_field(problem["loc"]) for problem in problems if problem["type"] == "extra_forbidden"]
    field = extra[0] if extra else _field(problems[0]["loc"])
    expected = f"expected an object with {', '.join((Pair if '.' in field else schema).model_fields)}"
    if extra:
        return f"unknown key {', '.join(extra)}; {expected}"
    if problems[0]["type"] == "missing":
        text = f"{field} is missing; {expected}"
    elif not field:
        text = f"{expected}, got {type(problems[0]['input']).__name__}"
    else:
        text = f"{field}: {problems[0]['msg'].removeprefix('Value error, ')}"
    return text + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _field(loc: Sequence[int | str]) -> str:
    """('instruction', 2, 'pos') -> `instruction[2].pos`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")
