"""From the text of a command-line argument to the value that its annotation asks for; nothing is evaluated."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

CONVERSION = ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True)


def convert(label: str, given: list[str], annotation: Any) -> Any:
    """`given` as the annotated type, by pydantic's lenient rules; text wins in a union that allows it."""
    adapter = TypeAdapter(annotation, config=CONVERSION)
    for reading in _readings(given, annotation):
        try:
            return adapter.validate_python(reading)
        except ValidationError:
            continue
    got = " ".join(given)
    choices = [choice for member in members(annotation) for choice in get_args(member) if isinstance(choice, str)]
    raise ValueError(f"{label} expects {type_name(annotation)}; got {got!r}{near(got, choices)}")


def _readings(given: list[str], annotation: Any) -> Iterator[Any]:
    """What the raw values may mean, likeliest first: true, a written list, one text, nothing, several values."""
    kinds, text = members(annotation), " ".join(given)
    listed = any(map(_is_list, kinds))
    if not given and bool in kinds:
        yield True
    if listed and text.startswith("[") and text.endswith("]"):
        yield [part.strip().strip("'\"") for part in text[1:-1].split(",")]
    if len(given) == 1:
        yield text
    if text.lower() == "none" and NoneType in kinds:
        yield None
    if listed and given:
        yield given
    if listed and (parts := text.replace(",", " ").split()):
        yield parts


def members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union; of anything else, itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _is_list(annotation: Any) -> bool:
    return (get_origin(annotation) or annotation) in (list, tuple, Sequence)


def type_name(annotation: Any) -> str:
    """The annotation for a reader: `float or float...`, `proj|cos_sim`; that None is possible is left out."""
    if _is_list(annotation):
        return f"{type_name((get_args(annotation) or (str,))[0])}..."
    if get_origin(annotation) is Literal:
        return "|".join(str(choice) for choice in get_args(annotation))
    alternatives = members(annotation)
    if alternatives == (annotation,):
        return getattr(annotation, "__name__", str(annotation))
    return " or ".join(type_name(alternative) for alternative in alternatives if alternative is not NoneType)


def near(name: str, known: Iterable[str], prefix: str = "") -> str:
    """`; did you mean X?` with the known name closest to `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""
