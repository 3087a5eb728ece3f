"""Persona vectors of the assistant axis: a persona is the mean activation over what it says.

With h the hidden states of one answer at one layer, p its prompt length and Q the questions a persona answered:
    vector = mean over q in Q of mean(h_q[p:])
`layer` is a hidden_states index. The vectors are raw means, not differences: `persona_vectors.axis` contrasts them.
Source: arXiv 2601.10387.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from persona_vectors.activations import iter_mean_activations, mean_activations
from persona_vectors.blocks import check_layer
from persona_vectors.config import PersonaVectorConfig, load_credentials
from persona_vectors.models import fingerprint, load_config, load_model, load_tokenizer
from persona_vectors.persona_files import model_slug
from persona_vectors.tokens import TokenizedSample, render_prompt, tokenize_sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MIN_ANSWERS = 10
"""Fewest answers that make a persona's vector, or all questions where there are fewer of them."""

Responses = Mapping[tuple[str, str], str]
"""(persona, question) -> answer."""


class ActivationExtractor:
    """A model that is loaded when its activations are first needed; its size is known from the config alone.

    Args:
        config: which model, how prompts are written, and at what depth it is read.
        model, tokenizer: a model that is loaded already, with its tokenizer.
        dtype, device_map: as `persona_vectors.models.load_model` takes them.
    """

    def __init__(
        self,
        config: PersonaVectorConfig | None = None,
        *,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dtype: str = "auto",
        device_map: str = "auto",
    ):
        if (model is None) != (tokenizer is None):
            raise ValueError("a model that is loaded already comes with its tokenizer: give both or neither")
        self.config = config or PersonaVectorConfig()
        self.dtype, self.device_map = dtype, device_map
        self._model, self._tokenizer = model, tokenizer
        self._given, self._fingerprint = model is not None, None

    @property
    def model(self) -> PreTrainedModel:
        """The model in eval mode, loaded now if it was not."""
        if self._model is None:
            with hub_token(self.config.hf_token):
                name = self.config.model_name
                self._model, self._tokenizer = load_model(name, dtype=self.dtype, device_map=self.device_map)
        return self._model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer; the model itself is not loaded for it."""
        if self._tokenizer is None:
            with hub_token(self.config.hf_token):
                self._tokenizer = load_tokenizer(self.config.model_name)
        return self._tokenizer

    @property
    def num_layers(self) -> int:
        """Decoder blocks; layers are 0..num_layers."""
        return self._text_config().num_hidden_layers

    @property
    def d_model(self) -> int:
        """Width of the hidden states."""
        return self._text_config().hidden_size

    @property
    def label(self) -> str:
        """The model's short name."""
        return model_slug(self.config.model_name)

    def get_extraction_layer(self) -> int:
        """The layer that the config asks for: int(num_layers * layer_fraction + 0.5)."""
        return self.config.get_extraction_layer(self.num_layers)

    def key(self) -> dict[str, Any] | None:
        """What determines an answer or an activation besides the text; None for a model that was given loaded."""
        if self._given:
            return None
        if self._fingerprint is None:
            with hub_token(self.config.hf_token):
                self._fingerprint = fingerprint(self.config.model_name)
        on_cuda = torch.cuda.is_available() and self.device_map != "cpu"
        return {"model": self._fingerprint, "dtype": self.dtype, "device": "cuda" if on_cuda else "cpu"}

    def prompt(self, system_prompt: str, question: str) -> str:
        """The text that is answered, in the config's format; an empty system prompt is none at all."""
        self.config.check()
        system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        return render_prompt(
            self.tokenizer, [*system, {"role": "user", "content": question}], self.config.prompt_format
        )

    def samples(
        self, system_prompts: Sequence[str], questions: Sequence[str], responses: Sequence[str]
    ) -> list[TokenizedSample]:
        """Each answer after its prompt, as token ids.

        Raises:
            ValueError: lists of different lengths, or an empty answer.
        """
        if not len(system_prompts) == len(questions) == len(responses):
            counts = f"{len(system_prompts)} system prompts, {len(questions)} questions and {len(responses)} responses"
            raise ValueError(f"got {counts}; expected as many of each")
        return [
            tokenize_sample(self.tokenizer, self.prompt(system, question), response)
            for system, question, response in zip(system_prompts, questions, responses, strict=True)
        ]

    def extract_activations(
        self, system_prompts: Sequence[str], questions: Sequence[str], responses: Sequence[str], layer: int
    ) -> Float[Tensor, "n d_model"]:
        """Mean activation over each response's tokens at `layer`: float32, on the CPU, in input order.

        Raises:
            ValueError: lists of different lengths, an empty response, or a layer that the model has not.
        """
        check_layer(layer, self.num_layers, self.label, steering=False)
        samples = self.samples(system_prompts, questions, responses)
        return mean_activations(self.model, samples, [layer], ["response_avg"])["response_avg"][:, 0]

    def _text_config(self) -> Any:
        if self._model is not None:
            return self._model.config.get_text_config()
        with hub_token(self.config.hf_token):
            return load_config(self.config.model_name)


@contextmanager
def hub_token(token: str | None) -> Iterator[None]:
    """HF_TOKEN is `token` within, or what `.env` says: hub libraries read it when they ask for a file."""
    load_credentials()
    before = os.environ.get("HF_TOKEN")
    if token:
        os.environ["HF_TOKEN"] = token
    try:
        yield
    finally:
        if token:
            os.environ.pop("HF_TOKEN")
            if before is not None:
                os.environ["HF_TOKEN"] = before


def extract_persona_vectors(
    extractor: ActivationExtractor,
    personas: Mapping[str, str],
    questions: Sequence[str],
    responses: Responses,
    layer: int | None = None,
    *,
    min_answers: int | None = None,
    progress: bool = False,
) -> dict[str, Float[Tensor, " d_model"]]:
    """Persona -> mean over its answers of the mean activation over each answer's tokens, at one layer; float32.

    Args:
        personas: name -> system prompt, those under which the responses were given.
        responses: (persona, question) -> answer; those of other personas or questions are left aside.
        layer: a hidden_states index; the extractor's own by default.
        min_answers: fewest answers of a persona; by default 10, or all questions where there are fewer.

    Raises:
        ValueError: personas with fewer answers (missing or empty ones do not count), all named with their counts; a
            layer that the model has not.
    """
    layer = extractor.get_extraction_layer() if layer is None else layer
    check_layer(layer, extractor.num_layers, extractor.label, steering=False)
    means = _persona_means(extractor, personas, questions, responses, [layer], min_answers, progress)
    return {name: vectors[0] for name, vectors in means.items()}


def extract_persona_layers(
    extractor: ActivationExtractor,
    personas: Mapping[str, str],
    questions: Sequence[str],
    responses: Responses,
    *,
    min_answers: int | None = None,
    progress: bool = False,
) -> dict[str, Float[Tensor, "layers d_model"]]:
    """Persona -> its vectors at every layer, (n_layers + 1, d_model); row L is `extract_persona_vectors` at layer L."""
    layers = range(extractor.num_layers + 1)
    return _persona_means(extractor, personas, questions, responses, layers, min_answers, progress)


def answered(personas: Mapping[str, str], questions: Sequence[str], responses: Responses) -> dict[str, list[str]]:
    """Persona -> the questions it answered with something; a missing or blank answer is none."""
    return {name: [q for q in questions if responses.get((name, q), "").strip()] for name in personas}


def _persona_means(
    extractor: ActivationExtractor,
    personas: Mapping[str, str],
    questions: Sequence[str],
    responses: Responses,
    layers: Sequence[int],
    min_answers: int | None,
    progress: bool,
) -> dict[str, Float[Tensor, "layers d_model"]]:
    """Sums run in float64 and nothing is kept of a single answer."""
    by_persona = answered(personas, questions, responses)
    check_answers(by_persona, len(questions), min_answers)
    places = [(name, question) for name, own in by_persona.items() for question in own]
    samples = extractor.samples(
        [personas[name] for name, _ in places], [q for _, q in places], [responses[place] for place in places]
    )
    index = {name: number for number, name in enumerate(by_persona)}
    owner = torch.tensor([index[name] for name, _ in places])
    sums = torch.zeros(len(index), len(layers), extractor.d_model, dtype=torch.float64)
    for rows, means in iter_mean_activations(
        extractor.model, samples, list(layers), ["response_avg"], progress=progress
    ):
        sums.index_add_(0, owner[rows], means["response_avg"].double())
    return {name: (sums[index[name]] / len(own)).float() for name, own in by_persona.items()}


def check_answers(by_persona: Mapping[str, Sequence[str]], n_questions: int, min_answers: int | None = None) -> None:
    """Returns if every persona has enough answers.

    Raises:
        ValueError: personas with fewer than `min_answers` (10, or all questions where there are fewer), with counts.
    """
    least = min(MIN_ANSWERS, n_questions) if min_answers is None else min_answers
    if least < 1:
        raise ValueError(f"min_answers must be at least 1, and there must be a question; got {least}")
    few = {name: len(own) for name, own in by_persona.items() if len(own) < least}
    if few:
        counts = ", ".join(f"{name} {n}" for name, n in few.items())
        raise ValueError(
            f"too few answers of {len(few)} of {len(by_persona)} personas ({counts} of {n_questions}); expected at "
            f"least {least}: generate the missing ones, leave these personas out, or lower min_answers"
        )
