"""Means of hidden states that were captured while a table's answers were sampled, kept beside the table.

`X.csv` has them in `X_means/`, a `.safetensors` file for each group of answers that ended together, float32:

    answer/<key>    (n_layers + 1, d_model)       response_avg
    prompt/<key>    (2, n_layers + 1, d_model)    prompt_avg and prompt_last, once for all answers of a prompt

A key is a hash of all that determines the tensor: the model's files, the number type it computed in, and the very token
ids. So nothing is matched by its place in a table. What another model or number type captured, an answer that was
edited, and one whose text is not tokenized to what was sampled are not found here, and are read in a forward pass. Only
what the plain model computes is ever written (`eval/vllm_answers.py`).

Files and not the store: an answer of a 7B model takes 0.4 MB and a prompt 0.8, so 2,000 answers to 200 prompts take 1
GB, which sqlite would hold as text until it is pruned. A group's file is whole or absent, and there before its answers
are stored: what a run that was interrupted counts as finished has its means. The folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from persona_vectors.activations import Means, check_finite, iter_mean_activations
from persona_vectors.files import write_bytes_atomic
from persona_vectors.models import fingerprint, load_config, resolve_dtype
from persona_vectors.span_means import SPANS
from persona_vectors.store import content_key
from persona_vectors.tokens import TokenizedSample

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FORMAT = "persona-means/1"
_OF_PROMPT = ("prompt_avg", "prompt_last")  # in the order of a prompt's tensor


@dataclass(frozen=True)
class Reader:
    """Who computes hidden states: the model's content, and the number type it computes in ("float32", ...).

    Equal readers compute equal means of equal tokens, beyond rounding.
    """

    model: str
    dtype: str

    def answer_name(self, sample: TokenizedSample) -> str:
        return f"answer/{self._key(sample)}"

    def prompt_name(self, sample: TokenizedSample) -> str:
        return f"prompt/{self._key(TokenizedSample(sample.ids[: sample.prompt_len], sample.prompt_len))}"

    def _key(self, sample: TokenizedSample) -> str:
        return content_key(
            "means", model=self.model, dtype=self.dtype, ids=list(sample.ids), prompt_len=sample.prompt_len
        )


def reader_of(model_name: str, dtype: str, device_map: str = "auto") -> Reader | None:
    """The reader that `load_model` gives for these arguments, without weights; None if only they say its type."""
    on_cuda = torch.cuda.is_available() and device_map != "cpu"
    resolved = resolve_dtype(dtype, on_cuda)
    if resolved == "auto":
        resolved = getattr(load_config(model_name), "dtype", None)
    return None if resolved is None else Reader(fingerprint(model_name), str(resolved).removeprefix("torch."))


@dataclass(frozen=True, eq=False)
class CapturedAnswer:
    """One unsteered answer's means, all (n_layers + 1, d_model) by `layer`.

    Attributes:
        sample: the tokens that were given and sampled, without the one that ended the answer.
        prompt: prompt_avg and prompt_last; None where another answer to the prompt has them.
    """

    reader: Reader
    sample: TokenizedSample
    response_avg: Float[Tensor, "layers d_model"]
    prompt: tuple[Float[Tensor, "layers d_model"], Float[Tensor, "layers d_model"]] | None = None

    def tensors(self) -> dict[str, Tensor]:
        """What a file holds of it, by name; an empty answer has no mean."""
        found = {self.reader.answer_name(self.sample): self.response_avg} if self.sample.response_len else {}
        if self.prompt is not None:
            found[self.reader.prompt_name(self.sample)] = torch.stack(self.prompt)
        return {name: tensor.float().contiguous() for name, tensor in found.items()}


def means_folder(table: str | Path) -> Path:
    """Where the means of a table's answers are: `X_means` beside `X.csv`."""
    return Path(table).with_name(f"{Path(table).stem}_means")


def write_means(folder: str | Path, captured: Sequence[CapturedAnswer]) -> None:
    """One more file in the folder, whole or absent; named after its content, so that none is ever written over."""
    from safetensors.torch import save

    tensors = {name: tensor for one in captured for name, tensor in one.tensors().items()}
    if tensors:
        reader = captured[0].reader
        content = save(tensors, {"format": _FORMAT, "model": reader.model, "dtype": reader.dtype})
        write_bytes_atomic(Path(folder) / f"{hashlib.sha256(content).hexdigest()[:32]}.safetensors", content)


def forget_means(folder: str | Path) -> None:
    """Deletes the files that `write_means` wrote there, for a table that is made anew; other files stay."""
    for path in Path(folder).glob("*.safetensors"):
        if len(path.stem) == 32:
            path.unlink()


class CapturedMeans:
    """What was captured beside some tables, as one reader would compute it.

    Args:
        reader: None finds nothing.
        shape: (n_layers + 1, d_model) of the model.

    Attributes:
        damaged: a line for each file that cannot be used; its answers are then not found.
        others: the readers of what is there for other readers only.
    """

    def __init__(self, tables: Iterable[str | Path], reader: Reader | None, shape: tuple[int, int]):
        self.reader, self.shape = reader, shape
        self.damaged: list[str] = []
        self.others: set[Reader] = set()
        self._file_of: dict[str, Path] = {}
        for folder in dict.fromkeys(means_folder(table) for table in tables):
            for path in sorted(folder.glob("*.safetensors")):
                self._index(path)

    def _index(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
                names = list(file.keys())
                shapes = {tuple(file.get_slice(name).get_shape())[-2:] for name in names}
        except (SafetensorError, OSError, ValueError) as error:
            self.damaged.append(f"{path} is damaged ({error})")
            return
        found = Reader(about.get("model", ""), about.get("dtype", ""))
        if about.get("format") != _FORMAT or (found == self.reader and shapes != {self.shape}):
            self.damaged.append(f"{path} holds no means of this model: shapes {sorted(shapes)}, expected {self.shape}")
        elif found == self.reader:
            self._file_of |= dict.fromkeys(names, path)
        else:
            self.others.add(found)

    def find(self, samples: Sequence[TokenizedSample], spans: Sequence[str] = SPANS) -> list[int]:
        """Which samples have all these spans here."""
        if not self._file_of:
            return []
        return [
            row for row, sample in enumerate(samples) if all(n in self._file_of for n in self._names(sample, spans))
        ]

    def said(self, n_found: int, n: int) -> list[str]:
        """What to tell a user who has `n` answers, `n_found` of them here; nothing where nothing was captured."""
        lines = [f"note: {line}; its answers are read" for line in self.damaged]
        if self._file_of or self.others:
            rest = "no model is loaded" if n_found == n else "reading the rest"
            lines.append(f"{n_found} of {n} answers' means were captured while sampling; {rest}")
        if self.others and n_found < n:
            own = "?" if self.reader is None else self.reader.dtype
            types = ", ".join(sorted({other.dtype for other in self.others}))
            lines.append(f"note: some were captured by another model, or in another number type ({types}; here {own})")
        return lines

    def _names(self, sample: TokenizedSample, spans: Sequence[str]) -> list[str]:
        assert self.reader is not None
        answer = [self.reader.answer_name(sample)] if "response_avg" in spans else []
        return answer + ([self.reader.prompt_name(sample)] if set(spans) & set(_OF_PROMPT) else [])

    def batches(
        self,
        samples: Sequence[TokenizedSample],
        rows: Sequence[int],
        layers: Sequence[int] | None = None,
        spans: Sequence[str] = SPANS,
        called: Sequence[str] | None = None,
    ) -> Iterator[tuple[list[int], Means]]:
        """The rows, which `find` has named, with their means: as `iter_mean_activations` gives them.

        Errors call the samples as `called` has it, where that is given.

        Raises:
            ValueError: means that are not finite.
        """
        names = {row: self._names(samples[row], spans) for row in rows}
        rows_in: dict[Path, list[int]] = defaultdict(list)
        for row, wanted in names.items():
            rows_in[self._file_of[wanted[0]]].append(row)  # the answer's, if it is wanted: each prompt is read once
        prompts = self._load(
            {name for wanted in names.values() for name in wanted if name.startswith("prompt/")}, layers
        )
        for own in rows_in.values():
            answers = self._load({name for row in own for name in names[row] if name.startswith("answer/")}, layers)
            means: Means = {}
            for span in spans:
                if span == "response_avg":
                    means[span] = torch.stack([answers[names[row][0]] for row in own])
                else:
                    means[span] = torch.stack([prompts[names[row][-1]][_OF_PROMPT.index(span)] for row in own])
            check_finite(torch.stack(list(means.values()), dim=1), own, called)
            yield own, means

    def _load(self, names: Iterable[str], layers: Sequence[int] | None) -> dict[str, Tensor]:
        """The tensors of those names, at those layers, each file opened once."""
        from safetensors import safe_open

        names_in: dict[Path, list[str]] = defaultdict(list)
        for name in names:
            names_in[self._file_of[name]].append(name)
        found = {}
        for path, own in names_in.items():
            with safe_open(path, "pt") as file:
                for name in own:
                    tensor = file.get_tensor(name)
                    found[name] = tensor if layers is None else tensor[..., list(layers), :]
        return found


def captured_or_read(
    captured: CapturedMeans,
    load: Callable[[], PreTrainedModel],
    samples: Sequence[TokenizedSample],
    layers: Sequence[int] | None = None,
    spans: Sequence[str] = SPANS,
    *,
    progress: bool = False,
    names: Sequence[str] | None = None,
) -> Iterator[tuple[list[int], Means]]:
    """The batches of `iter_mean_activations`: what was captured, then what the model, loaded only then, has to read.

    Errors call the samples by `names`, where they are given.
    """
    found = captured.find(samples, spans)
    yield from captured.batches(samples, found, layers, spans, names)
    rest = sorted(set(range(len(samples))) - set(found))
    if rest:
        chosen = [samples[row] for row in rest]
        own = None if names is None else [names[row] for row in rest]
        for rows, means in iter_mean_activations(load(), chosen, layers, spans, progress=progress, names=own):
            yield [rest[row] for row in rows], means
