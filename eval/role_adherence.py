"""Role adherence judged by any judge, local or served, by way of the store: what is finished is never asked again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from eval.finished_scores import judge_key
from judge import JudgeError, check_judge, is_local_judge
from persona_vectors import chat_api, local_judges
from persona_vectors.judging import failure_line
from persona_vectors.persona_files import Place
from persona_vectors.personas import PersonaSet
from persona_vectors.role_adherence import (
    Adherence,
    label_of,
    local_labels,
    other_roles,
    role_prompts,
    tells_roles_apart,
)
from persona_vectors.store import Store, content_key

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat.chat_completion import Choice


def judge_adherence(
    judge_model: str,
    cast: PersonaSet,
    responses: Mapping[Place, str],
    *,
    store: Store,
    max_concurrent: int = 100,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[Place, Adherence | None]:
    """(persona, question) -> how far the answer plays its role, of every role's answers; None where the judge gave no
    label.

    Labels are stored as they come, so that an interrupted run goes on where it was. `checked_adherence` also asks
    whether the judge reads the role at all: the embedded model's does not.

    Args:
        judge_model: an OpenAI model, a served model (OPENAI_BASE_URL), or a local folder or hub id, which answers by
            its own probabilities.

    Raises:
        ValueError: a judge that is not there or has no key.
        JudgeError: calls that failed, after the others were stored.
    """
    check_judge(judge_model)
    prompts = role_prompts(cast, responses)
    who = judge_key(judge_model)
    keys = {text: content_key("role_adherence", judge=who, prompt=text) for text in prompts.values()}
    kept = {} if overwrite else store.get_many(list(keys.values()))
    labels: dict[str, Adherence | None] = {text: kept[key] for text, key in keys.items() if key in kept}

    def keep(found: Mapping[str, Adherence | None]) -> None:
        store.put_many({keys[text]: label for text, label in found.items()}, kind="score", source=judge_model)
        labels.update(found)

    if waiting := [text for text in keys if text not in labels]:
        if is_local_judge(judge_model):
            model, tokenizer = local_judges.load_shared(judge_model, "auto", "auto")
            local_labels(model, tokenizer, waiting, on_batch=keep, progress=progress)
        elif failed := _ask(judge_model, waiting, keep, max_concurrent):
            failures = {row: failed[text] for row, text in enumerate(prompts.values()) if text in failed}
            raise JudgeError(failure_line(failures, len(prompts)), failures)
    return {place: labels[text] for place, text in prompts.items()}


def checked_adherence(
    judge_model: str,
    cast: PersonaSet,
    responses: Mapping[Place, str],
    *,
    store: Store,
    overwrite: bool = False,
) -> tuple[dict[Place, Adherence | None], str]:
    """(labels as `judge_adherence` gives them, one line on how the judge did on its control).

    Raises:
        ValueError: a judge that says `fully` of answers whoever gave them: its labels mean nothing.
    """
    own = judge_adherence(judge_model, cast, responses, store=store, overwrite=overwrite)
    others = judge_adherence(judge_model, cast, other_roles(cast, responses), store=store, overwrite=overwrite)
    apart, shares = tells_roles_apart(own, others)
    if not apart:
        raise ValueError(
            f"judge {judge_model} cannot tell roles apart: {shares}; take another --judge_model, or none (then every "
            "answer counts)"
        )
    return own, f"judge {judge_model}: {shares}"


def _ask(
    judge_model: str, prompts: list[str], keep: Callable[[dict[str, Adherence]], None], max_concurrent: int
) -> dict[str, str]:
    """Prompt -> why it failed; the labels of all others were given to `keep`."""

    async def ask(client: AsyncOpenAI, prompt: str) -> Adherence:
        messages = [{"role": "user", "content": prompt}]
        return await chat_api.complete(client, _read, model=judge_model, messages=messages, temperature=0)

    return chat_api.ask_all(ask, prompts, lambda prompt, label: keep({prompt: label}), max_concurrent)


def _read(choice: Choice) -> Adherence:
    label = label_of(text := chat_api.text_of(choice))
    if label is None:
        raise chat_api.UnusableReply(f"the judge said neither fully, somewhat nor none: {' '.join(text.split())[:60]}")
    return label
