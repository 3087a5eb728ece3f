"""What personas answer: from an OpenAI-style API, from a local model, or from a file; finished answers are never lost.

Every answer is kept in the store as it comes, under a hash of everything that determines it, so that a run that was
interrupted, or lost some calls, goes on with what is missing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from persona_vectors import chat_api
from persona_vectors.config import PersonaVectorConfig
from persona_vectors.models import looks_local
from persona_vectors.persona_files import Place
from persona_vectors.store import Store, content_key

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat.chat_completion import Choice

    from persona_vectors.persona_extraction import ActivationExtractor

OPENROUTER_URL = "https://openrouter.ai/api/v1"

Keep = Callable[[Mapping[Place, str]], None]

SILENT = "the model said nothing"

_NEXT_TURN = re.compile(r"\n\s*(?:User|System):")


class ResponsesError(RuntimeError):
    """Answers that could not be had, after all others were stored.

    Attributes:
        responses: the answers that there are.
        failures: (persona, question) -> why there is none.
    """

    def __init__(
        self, responses: Mapping[Place, str], failures: Mapping[Place, str], again: str = "run again for the rest"
    ):
        reasons = "; ".join(f"{n} x {why}" for why, n in Counter(failures.values()).most_common(3))
        personas = ", ".join(f"{name} {n}" for name, n in Counter(name for name, _ in failures).most_common(5))
        total = len(responses) + len(failures)
        super().__init__(
            f"{len(failures)} of {total} answers are missing ({personas}): {reasons}; "
            f"{len(responses)} are kept; {again}"
        )
        self.responses, self.failures = dict(responses), dict(failures)


@dataclass(frozen=True)
class Endpoint:
    """Whom an API's answers are asked from."""

    base_url: str
    api_key: str = field(repr=False)


def answers_locally(config: PersonaVectorConfig) -> bool:
    """Whether answers are sampled in this process: model_name is a folder, and no API's name for it is given."""
    return config.openrouter_model is None and looks_local(config.model_name)


def find_endpoint(config: PersonaVectorConfig) -> Endpoint:
    """OpenRouter with the config's own key; else the server at OPENAI_BASE_URL; else OpenRouter with
    OPENROUTER_API_KEY.

    Raises:
        ValueError: none of them is set.
    """
    if config.openrouter_api_key:
        return Endpoint(OPENROUTER_URL, config.openrouter_api_key)
    if base_url := chat_api.environment("OPENAI_BASE_URL"):
        return Endpoint(base_url, chat_api.environment("OPENAI_API_KEY"))
    if key := chat_api.environment("OPENROUTER_API_KEY"):
        return Endpoint(OPENROUTER_URL, key)
    raise ValueError(
        f"answers of {config.answering_model} need OPENROUTER_API_KEY (in the environment or .env), or the "
        "OPENAI_BASE_URL of a server that has it; a model folder is sampled in this process and needs neither"
    )


def generate_responses(
    personas: Mapping[str, str],
    questions: Sequence[str],
    config: PersonaVectorConfig | None = None,
    *,
    extractor: ActivationExtractor | None = None,
    seed: int = 0,
    store: Store | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[Place, str]:
    """(persona, question) -> the answer to the question under the persona's system prompt; in the order asked.

    A model folder is sampled in this process, any other model over an API (`find_endpoint`): in a notebook too, where
    an event loop runs already. Finished answers come from the store. An empty system prompt is none at all.
    A model in this process may say nothing: that answer is blank, at every run, and counts as none where vectors are
    made (`persona_extraction.answered`); another seed gives another answer.

    Args:
        personas: name -> system prompt.
        extractor: its model answers, in this process, whatever its name; loaded once for answers and activations.
        seed: of local sampling. An API is asked anew for each seed, but does not repeat itself.
        store: finished answers; the default one (PERSONA_STORE) unless given.
        overwrite: forget what is finished and ask for all of them anew.

    Raises:
        ValueError: nothing to ask, a question twice or blank, no key and no server, an extractor that writes prompts
            in another format than `config`.
        ResponsesError: calls of an API that failed or brought nothing; it holds the answers that came.
    """
    config = config or (extractor.config if extractor is not None else PersonaVectorConfig())
    config.check()
    _check(personas, questions)
    source = _source(config, extractor, seed)
    places = [(name, question) for name in personas for question in questions]
    keys = {place: source.key(personas[place[0]], place) for place in places}
    with nullcontext(store) if store is not None else Store() as finished:
        stored_keys = [key for key in keys.values() if key is not None]
        if overwrite:
            finished.delete_many(stored_keys)  # or else a later run would fill in from before what failed in this one
        kept = finished.get_many(stored_keys)
        answers = {place: str(kept[key]) for place, key in keys.items() if key in kept}

        def keep(found: Mapping[Place, str]) -> None:
            stored = {key: text for place, text in found.items() if (key := keys[place]) is not None}
            finished.put_many(stored, kind="answer", source=source.name)
            answers.update(found)

        waiting = {place: personas[place[0]] for place in places if place not in answers}
        failures = source.ask(waiting, keep, progress) if waiting else {}
    answers = {place: answers[place] for place in places if place in answers}
    if failures:
        again = "run again without overwrite for the rest" if overwrite else "run again for the rest"
        raise ResponsesError(answers, failures, again)
    return answers


def _check(personas: Mapping[str, str], questions: Sequence[str]) -> None:
    if not personas or not questions:
        raise ValueError(f"got {len(personas)} personas and {len(questions)} questions; expected some of each")
    if bad := [question for question, n in Counter(questions).items() if n > 1 or not question.strip()]:
        raise ValueError(f"a question is blank or there twice: {bad[0]!r}")


def _source(config: PersonaVectorConfig, extractor: ActivationExtractor | None, seed: int) -> _Served | _Local:
    if extractor is None and not answers_locally(config):
        return _Served(config, find_endpoint(config), seed)
    if extractor is None:
        from persona_vectors.persona_extraction import ActivationExtractor

        extractor = ActivationExtractor(config)
    if config.prompt_format != (own := extractor.config.prompt_format):
        raise ValueError(
            f"config has prompt_format {config.prompt_format}, the extractor that answers has {own}; make the "
            "extractor with this config, or give no config"
        )
    return _Local(config, extractor, seed)


@dataclass(frozen=True)
class _Served:
    """Answers of an API."""

    config: PersonaVectorConfig
    endpoint: Endpoint
    seed: int

    @property
    def name(self) -> str:
        return self.config.answering_model

    def key(self, system_prompt: str, place: Place) -> str:
        """Everything that determines an answer; the persona's name tells equal prompts apart."""
        return content_key(
            "persona_answer",
            model=self.name,
            base_url=self.endpoint.base_url,
            persona=place[0],
            messages=_messages(system_prompt, place[1]),
            seed=self.seed,
            **_sampling(self.config),
        )

    def ask(self, waiting: Mapping[Place, str], keep: Keep, progress: bool) -> dict[Place, str]:
        """(persona, question) -> why there is no answer; all others are given to `keep` as they come."""
        from tqdm import tqdm

        by_name = {json.dumps(place): place for place in waiting}

        async def ask(client: AsyncOpenAI, name: str) -> str:
            place = by_name[name]
            request: dict[str, Any] = {"messages": _messages(waiting[place], place[1]), **_sampling(self.config)}
            return await chat_api.complete(client, _said, model=self.name, **request)

        with tqdm(total=len(waiting), desc="answers", unit="answer", disable=not progress) as bar:

            def record(name: str, text: str) -> None:
                keep({by_name[name]: text})
                bar.update()

            client = chat_api.new_client(base_url=self.endpoint.base_url, api_key=self.endpoint.api_key)
            failed = chat_api.ask_all(ask, list(by_name), record, self.config.max_concurrent_requests, client)
        return {by_name[name]: why for name, why in failed.items()}


@dataclass(frozen=True)
class _Local:
    """Answers sampled in this process."""

    config: PersonaVectorConfig
    extractor: ActivationExtractor
    seed: int

    @property
    def name(self) -> str:
        return self.extractor.config.model_name

    def key(self, system_prompt: str, place: Place) -> str | None:
        """Everything that determines an answer; None for a model whose weights have no file to tell them by."""
        how = self.extractor.key()
        if how is None:
            return None
        stream = self._stream(place) if self.config.temperature > 0 else None
        prompt = self.extractor.prompt(system_prompt, place[1])
        return content_key("persona_answer", prompt=prompt, stream=stream, **how, **_sampling(self.config))

    def ask(self, waiting: Mapping[Place, str], keep: Keep, progress: bool) -> dict[Place, str]:
        """Nothing fails but the whole job; answers are given to `keep` as they are finished."""
        from persona_vectors.sampling import sample_answers

        places = list(waiting)
        raw = self.extractor.config.prompt_format == "raw"

        def on_batch(rows: Sequence[int], texts: Sequence[str]) -> None:
            keep({places[row]: _own_turn(text) if raw else text for row, text in zip(rows, texts, strict=True)})

        sample_answers(
            self.extractor.model,
            self.extractor.tokenizer,
            [self.extractor.prompt(waiting[place], place[1]) for place in places],
            streams=[self._stream(place) for place in places],
            on_batch=on_batch,
            progress=progress,
            **_sampling(self.config),
        )
        return {}

    def _stream(self, place: Place) -> list[int]:
        """What seeds an answer's random numbers: of this answer alone, whatever else is asked."""
        return [self.seed, int.from_bytes(hashlib.sha256(json.dumps(place).encode()).digest()[:8])]


def _sampling(config: PersonaVectorConfig) -> dict[str, Any]:
    return {"max_tokens": config.max_tokens, "temperature": float(config.temperature)}


def _messages(system_prompt: str, question: str) -> list[dict[str, str]]:
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return [*system, {"role": "user", "content": question}]


def _said(choice: Choice) -> str:
    text = chat_api.text_of(choice)
    if not text.strip():
        raise chat_api.UnusableReply(SILENT)
    return text


def _own_turn(text: str) -> str:
    """The answer alone: in raw text nothing but the next turn ends a turn, and a space sets off its first word."""
    return _NEXT_TURN.split(text, maxsplit=1)[0].removeprefix(" ")
