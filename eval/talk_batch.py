"""Prompts asked at several strengths as one sampling job, and the table of the answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.finished_answers import Engine, answers_of
from eval.model_utils import Added
from eval.sweep_receipts import lines as receipt_lines
from eval.sweep_receipts import measure
from eval.talk_settings import Settings
from persona_vectors.files import read_sidecar, write_csv_atomic, write_sidecar
from persona_vectors.tokens import render_prompt

if TYPE_CHECKING:
    import pandas as pd

    from persona_vectors.store import Store

KIND = "steered answers"


@dataclass(frozen=True, eq=False)
class Column:
    """One way of answering all prompts.

    Attributes:
        control: "random" for a random direction of the vector's norm, otherwise "".
    """

    strength: float
    control: str
    steering: Added

    @property
    def label(self) -> str:
        return f"random {self.strength:g}" if self.control else f"strength {self.strength:g}"


def columns(settings: Settings, strengths: Sequence[float], control: bool) -> list[Column]:
    """The strengths as given, and with `control` a random direction at each of them that steers."""
    found = [Column(one, "", settings.steering(one)) for one in strengths]
    if control:
        random = replace(settings, control=True)
        found += [Column(one, "random", random.steering(one)) for one in strengths if one]
    return found


def batch_answers(
    engine: Engine,
    store: Store,
    settings: Settings,
    prompts: Sequence[str],
    asked: Sequence[Column],
    say: Callable[[str], None],
) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """(answers by prompt and column, the receipts taken): one job, each row with its own steering.

    Prompt i draws from the random stream (seed, i) in every column. Finished answers come from the store; a receipt is
    taken before the first that is sampled, and none where none is.
    """
    rendered = [render_prompt(engine.tokenizer, _messages(settings, prompt)) for prompt in prompts]
    receipts: list[dict[str, Any]] = []

    def before_sampling() -> None:
        steered = [column for column in asked if column.steering is not None]
        if not steered:
            return
        found = measure(engine, rendered[0], [column.steering for column in steered])
        name = settings.file.path.name
        for column, (receipt,) in zip(steered, found, strict=True):
            which = {"vector": "", "matched": name} if column.control else {"vector": name, "matched": ""}
            receipts.append({"control": column.control, **which, **asdict(receipt)})
        for line in receipt_lines(receipts):
            say(line)

    texts = answers_of(
        engine,
        [prompt for prompt in rendered for _ in asked],
        [(settings.seed, number) for number in range(len(prompts)) for _ in asked],
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        steerings=[column.steering for _ in prompts for column in asked],
        store=store,
        before_sampling=before_sampling,
    )
    n = len(asked)
    return [texts[start : start + n] for start in range(0, len(texts), n)], receipts


def _messages(settings: Settings, prompt: str) -> list[dict[str, str]]:
    system = [{"role": "system", "content": settings.system_prompt}] if settings.system_prompt else []
    return [*system, {"role": "user", "content": prompt}]


def write_batch(
    path: Path,
    engine: Engine,
    settings: Settings,
    prompts: Sequence[str],
    asked: Sequence[Column],
    answers: Sequence[Sequence[str]],
    receipts: Sequence[dict[str, Any]],
) -> Path:
    """The path, now a CSV with a row for each prompt and column, in the columns of response tables; and its sidecar."""
    write_csv_atomic(batch_table(engine, settings, prompts, asked, answers), path)
    write_sidecar(path, {**batch_record(engine, settings, prompts, asked), "receipts": list(receipts)})
    return path


def batch_record(engine: Engine, settings: Settings, prompts: Sequence[str], asked: Sequence[Column]) -> dict[str, Any]:
    """What the sidecar says of how the answers were made."""
    record = settings.record()
    del record["compared"], record["strength"], record["control"]
    strengths = [column.strength for column in asked if not column.control]
    return {
        "kind": KIND,
        "model": {"name": engine.name, **engine.key()},
        "settings": {**record, "strengths": strengths, "random_strengths": [c.strength for c in asked if c.control]},
        "prompts": list(prompts),
    }


def check_replaceable(path: Path) -> None:
    """Refuses, with a ValueError, to write over a file that is no table of ours."""
    if path.is_file() and read_sidecar(path).get("kind") != KIND:
        raise ValueError(f"{path} is not a table of persona_steering.py; give --output_path another name")


def replaced_lines(path: Path, record: dict[str, Any]) -> list[str]:
    """What to say of the table that stands at the path, if it is of other settings."""
    before = json.loads(json.dumps(read_sidecar(path)))
    after = json.loads(json.dumps(record))
    if not path.is_file() or all(before.get(key) == value for key, value in after.items()):
        return []
    old, new = before.get("settings", {}), after["settings"]
    changed = [key for key in new if old.get(key) != new[key]] or [
        key for key in after if before.get(key) != after[key]
    ]
    return [
        f"note: {path} held answers with other {', '.join(changed)} and is replaced; --output_path keeps both "
        "(finished answers stay in the store)"
    ]


def batch_table(
    engine: Engine,
    settings: Settings,
    prompts: Sequence[str],
    asked: Sequence[Column],
    answers: Sequence[Sequence[str]],
) -> pd.DataFrame:
    """question, prompt, answer, question_id, coef, layer, vector, control; a row for each prompt and column."""
    import pandas as pd

    rows = []
    for number, (question, texts) in enumerate(zip(prompts, answers, strict=True)):
        prompt = render_prompt(engine.tokenizer, _messages(settings, question))
        for column, text in zip(asked, texts, strict=True):
            rows.append(
                {
                    "question": question,
                    "prompt": prompt,
                    "answer": text,
                    "question_id": f"{settings.trait}_{number}",
                    "coef": column.strength,
                    "layer": settings.layer,
                    "vector": "" if column.control else str(settings.file.path),
                    "control": column.control,
                }
            )
    return pd.DataFrame(rows)
