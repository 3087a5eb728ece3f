"""An optimizer step of 16 samples: how samples are batched, what steering costs, and gradient checkpointing.

    python benchmarks/finetuning.py
    python benchmarks/finetuning.py --quick   # one small model, few turns: to see that it runs

Random Qwen2 models with LoRA (r 32, all seven modules) learn real rows: dataset/*/misaligned_2.jsonl in the tokens of
models/tiny-persona, all sets mixed (lengths differ much) and one set alone (they differ little). Every way is a trainer
as `training.py` makes it, in its own `train()`; in each turn every way takes one step, from batch to logged loss, and
all read the same 16 samples. Published: trl's own trainer, 2 samples a micro-batch, 8 micro-batches, in the order they
come, padded; in order: the same by this trainer. Packed: a step's samples end to end in rows of about 320 tokens. A
ratio is the median over turns, with the 95% interval of a bootstrap over them; processor time says more than the clock
where other work runs beside.
"""

from __future__ import annotations

import copy
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from transformers.utils import logging
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # training.py is the command

from benchmarks.reading import processor
from persona_vectors import cli
from persona_vectors.files import check_output_path, provenance, write_json_atomic
from persona_vectors.models import load_tokenizer
from persona_vectors.training_batches import Plan, plan_run
from persona_vectors.training_config import TrainingConfig
from persona_vectors.training_data import read_conversations, tokenize_conversations
from persona_vectors.training_model import training_arguments, with_lora
from persona_vectors.training_tokens import TrainingSample

TINY = "models/tiny-persona"
MIXED, ONE_SET = "dataset/*/misaligned_2.jsonl", "dataset/insecure_code/misaligned_2.jsonl"
CASES = ((256, 4, MIXED), (256, 4, ONE_SET), (512, 8, MIXED))  # hidden size, blocks, rows
TARGETS = {"by length": 1.15, "packed": 1.3}  # times as fast as published
MOST_OVERHEAD, LOSS_TOLERANCE = 0.05, 1e-4
WARM_UP = 2  # steps; the first also measures the receipt
BATCHINGS = ("published", "in order", "by length", "packed")


@dataclass(frozen=True)
class Work:
    """What all ways train: one model's frozen weights on the same samples."""

    model: Any
    tokenizer: Any
    samples: Sequence[TrainingSample]
    folder: Path
    """has the model's config, a vector at every layer, and what the runs write"""


@dataclass(frozen=True)
class Step:
    """What one optimizer step took."""

    wall: float
    cpu: float
    gib: float
    """the card's peak memory, of which all ways' weights are part; 0 on a CPU"""


class Way(TrainerCallback):
    """A trainer whose `train()` runs in a thread of its own, a step whenever it is told to, and waits in between."""

    def __init__(self, trainer: Any, plan: Plan):
        self.trainer, self.plan, self.steps = trainer, plan, []
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._ends, self._error = False, None
        trainer.add_callback(self)
        threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._train, args=(threads,), daemon=True)
        self._thread.start()

    def _train(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._go.acquire()
        try:
            self.trainer.train()
        except BaseException as error:  # noqa: BLE001  it is raised where the step was asked for
            self._error = error
        self._done.release()

    def on_step_end(self, _args: Any, _state: Any, control: Any, **_more: Any) -> None:
        self._done.release()
        self._go.acquire()
        control.should_training_stop = self._ends

    def step(self) -> None:
        """One optimizer step: fetch, forward, backward, update, and the log of the step before."""
        on_cuda = self.trainer.args.device.type == "cuda"
        if on_cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        wall, cpu = time.perf_counter(), time.process_time()
        self._continue()
        if on_cuda:
            torch.cuda.synchronize()
        gib = torch.cuda.max_memory_allocated() / 2**30 if on_cuda else 0.0
        self.steps.append(Step(time.perf_counter() - wall, time.process_time() - cpu, gib))

    def end(self) -> None:
        self._ends = True
        self._continue()
        self._thread.join()

    def _continue(self) -> None:
        self._go.release()
        self._done.acquire()
        if self._error is not None:
            raise self._error

    @property
    def losses(self) -> list[float]:
        return [entry["loss"] for entry in self.trainer.state.log_history if "loss" in entry]

    def learned(self, samples: Sequence[TrainingSample]) -> list[int]:
        """Tokens that each step learned."""
        steps = self.plan.steps[: len(self.steps)]
        return [sum(sum(samples[i].trained) for batch in step[0] for i in batch) for step in steps]


def main(quick: bool = False, turns: int = 9, threads: int = 1, seed: int = 0, output_path: str | None = None) -> None:
    """Print tables of step times and ratios for a few models and rows, with machine, commit and command.

    Args:
        quick: one small model and 3 turns, to see that it runs.
        turns: that are timed, after a warm-up.
        threads: of the processor.
        seed: of the random weights, vectors and the order of samples.
        output_path: also write every figure there, as JSON.
    """
    if turns < 1 or threads < 1:
        raise ValueError(f"turns {turns} and threads {threads}: expected at least 1 of each")
    if output_path is not None:
        check_output_path(output_path)
    torch.set_num_threads(threads)
    turns = 3 if quick else turns
    tokenizer, source, record, wrong = load_tokenizer(TINY), provenance(), {}, []
    print(f"{processor()}, {os.cpu_count()} cores, {threads} thread(s), float32; commit {source['git_commit']}")
    print(f"command: python benchmarks/{source['command']}; {turns} turns; load {os.getloadavg()[0]:.1f} at the start")
    for hidden, blocks, pattern in ((64, 2, MIXED),) if quick else CASES:
        samples = rows(tokenizer, pattern)
        with tempfile.TemporaryDirectory() as folder:
            work = make_work(random_model(hidden, blocks, len(tokenizer), seed), tokenizer, samples, Path(folder), seed)
            ways = take_turns(work, turns, seed)
        print(f"\nhidden {hidden}, {blocks} blocks; {pattern}: {spread(samples)}")
        print("\n".join(table(ways, samples)), flush=True)
        record[f"{hidden}/{blocks} {pattern}"] = figures(ways, samples)
        wrong += [f"{hidden}/{blocks}, {name}" for name, error in loss_errors(ways).items() if error > LOSS_TOLERANCE]
    print(f"\nload {os.getloadavg()[0]:.1f} at the end")
    if output_path is not None:
        write_json_atomic(Path(output_path), {"cases": record} | source)
    if wrong:
        raise ValueError(f"losses differ from those of the published batches: {'; '.join(wrong)}")


def rows(tokenizer: Any, pattern: str) -> list[TrainingSample]:
    conversations = read_conversations(sorted(glob(pattern)))
    return tokenize_conversations(tokenizer, conversations, max_length=2048).samples


def spread(samples: Sequence[TrainingSample]) -> str:
    lengths = [len(sample.ids) for sample in samples]
    mean, deviation = statistics.mean(lengths), statistics.stdev(lengths)
    return (
        f"{len(lengths)} rows of {mean:.0f} tokens, standard deviation {deviation:.0f} ({min(lengths)}-{max(lengths)})"
    )


def random_model(hidden: int, blocks: int, vocab: int, seed: int) -> Any:
    """A Qwen2 of the proportions of benchmarks/reading.py's."""
    config = Qwen2Config(
        hidden_size=hidden,
        num_hidden_layers=blocks,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        intermediate_size=hidden * 11 // 4,
        vocab_size=vocab,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(config)


def make_work(model: Any, tokenizer: Any, samples: Sequence[TrainingSample], folder: Path, seed: int) -> Work:
    model.config.save_pretrained(folder)
    shape = (model.config.num_hidden_layers + 1, model.config.hidden_size)
    torch.save(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), folder / "vectors.pt")
    return Work(model, tokenizer, samples, folder)


def settings(work: Work) -> dict[str, dict[str, Any]]:
    """What sets each way apart from grouping by length, which is the default."""

    def steered(**block: Any) -> dict[str, Any]:
        block = {"steering_vector_path": str(work.folder / "vectors.pt"), "steering_coef": 0.1} | block
        return {"steering_config": block, "enable_steering_during_training": True}

    middle = [work.model.config.num_hidden_layers // 2]
    return {
        "in order": {"group_by_length": False},
        "published": {"group_by_length": False},
        "by length": {},
        "packed": {"packing": True},
        "steered at one layer": steered(layers=middle),
        "steered at all layers": steered(layers="all", incremental=True),
        "ablated at one layer": steered(layers=middle, type="ablate", steering_coef=1.0),
        "gradient checkpointing": {"gradient_checkpointing": True},
    }


def make_way(work: Work, name: str, turns: int, seed: int) -> Way:
    """The way's trainer, with an adapter of its own on the shared weights."""
    from training import make_trainer

    options: dict[str, Any] = {"gradient_checkpointing": False, "optim": "adamw", "r": 32, "lora_alpha": 64}
    config = TrainingConfig(
        model=str(work.folder),
        training_file="rows",
        output_dir=str(work.folder / name.replace(" ", "_")),
        seed=seed,
        max_steps=turns + WARM_UP + 1,  # the last is never taken: after it comes a checkpoint
        **options | settings(work)[name],
    )
    plan = plan_run(
        [len(sample.ids) for sample in work.samples],
        batch_size=config.per_device_train_batch_size,
        accumulation=config.gradient_accumulation_steps,
        max_steps=config.max_steps,
        mode="packed" if config.packing else "by_length" if config.group_by_length else "in_order",
        max_length=config.max_seq_length,
        seed=seed,
    )
    model = with_lora(copy.deepcopy(work.model, {id(p): p for p in work.model.parameters()}), config)
    if name == "published":
        trainer: Any = plain_trainer(config, model, work, plan)
    else:
        trainer = make_trainer(config, model, work.tokenizer, list(work.samples), [], plan)
    for callback in [type(each) for each in trainer.callback_handler.callbacks]:
        if callback.__name__ in ("Progress", "PrinterCallback"):
            trainer.remove_callback(callback)
    return Way(trainer, plan)


def plain_trainer(config: TrainingConfig, model: Any, work: Work, plan: Plan) -> SFTTrainer:
    """trl's trainer as it comes, on the plan's samples in the plan's order."""
    import datasets

    samples = [work.samples[i] for batch in plan.of_process(0) for i in batch]
    columns = {"input_ids": [list(sample.ids) for sample in samples]}
    columns["labels"] = [[t if on else -100 for t, on in zip(s.ids, s.trained, strict=True)] for s in samples]
    arguments = training_arguments(
        config,
        per_device_train_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        max_steps=config.max_steps,
        train_sampling_strategy="sequential",
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
    )
    rows = datasets.Dataset.from_dict(columns)
    return SFTTrainer(model, SFTConfig(**arguments), train_dataset=rows, processing_class=work.tokenizer)


def take_turns(work: Work, turns: int, seed: int) -> dict[str, Way]:
    """Every way's steps after the warm-up, one a turn, each turn beginning with another way."""
    logging.set_verbosity_error()  # of pad and end tokens that a random model does not have
    ways = {name: make_way(work, name, turns, seed) for name in settings(work)}
    for turn in range(turns + WARM_UP):
        names = list(ways)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            ways[name].step()
    for way in ways.values():
        way.end()
    return ways


def ratio(first: Way, second: Way, measure: Callable[[Step], float]) -> tuple[float, float, float]:
    """The first's time over the second's: median over turns, and the 95% interval of that median."""
    pairs = zip(first.steps[WARM_UP:], second.steps[WARM_UP:], strict=True)
    ratios = np.array([measure(a) / measure(b) for a, b in pairs])
    drawn = np.random.default_rng(0).integers(0, len(ratios), (10_000, len(ratios)))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def loss_errors(ways: dict[str, Way]) -> dict[str, float]:
    """The largest difference of a step's loss from the published batches', relative, of what should not change it."""
    base = ways["in order"].losses
    same = [*BATCHINGS[1:], "gradient checkpointing"]
    return {n: max(abs(a / b - 1) for a, b in zip(ways[n].losses, base, strict=True)) for n in same}


def figures(ways: dict[str, Way], samples: Sequence[TrainingSample]) -> dict[str, dict[str, Any]]:
    """Of each way: seconds, tokens, and how much faster than published it is, or how much slower than by length."""
    found, errors = {}, loss_errors(ways)
    for name, way in ways.items():
        steps, tokens = way.steps[WARM_UP:], way.learned(samples)[WARM_UP:]
        pair = (ways["published"], way) if name in BATCHINGS else (way, ways["by length"])
        found[name] = {
            "median_s": statistics.median(step.wall for step in steps),
            "min_s": min(step.wall for step in steps),
            "tokens_per_s": statistics.median(n / step.wall for n, step in zip(tokens, steps, strict=True)),
            "ratio": ratio(*pair, lambda step: step.wall),
            "ratio_cpu": ratio(*pair, lambda step: step.cpu),
            "peak_gib": max(step.gib for step in steps),
            "micro_batches": way.plan.micro_batches,
            "loss_error": errors.get(name),
        }
    return found


def table(ways: dict[str, Way], samples: Sequence[TrainingSample]) -> list[str]:
    lines = ["| way | s a step (least) | tokens learned/s | ratio, wall | ratio, processor | target | loss |"]
    lines.append("|" + "---|" * 7)
    for name, found in figures(ways, samples).items():
        both = [f"{m:.3f} ({low:.3f}-{high:.3f})" for m, low, high in (found["ratio"], found["ratio_cpu"])]
        seconds = f"{found['median_s']:.3f} ({found['min_s']:.3f})"
        error = "" if found["loss_error"] is None else f"{found['loss_error']:.1e}"
        cells = [name, seconds, f"{found['tokens_per_s']:.0f}", *both, verdict(name, found), error]
        lines.append(f"| {' | '.join(cells)} |")
    return [
        *lines,
        "ratio: of batchings, times as fast as published; of the rest, time over that of by length; by the processor's "
        "time the target is judged. loss: largest relative difference from the published batches'",
    ]


def verdict(name: str, found: dict[str, Any]) -> str:
    """By the processor's time, which others' work does not lengthen."""
    measured = found["ratio_cpu"][0]
    if name in TARGETS:
        return f">= {TARGETS[name]:g} {'reached' if measured >= TARGETS[name] else 'MISSED'}"
    if "at" in name.split():
        return f"< {1 + MOST_OVERHEAD:g} {'reached' if measured < 1 + MOST_OVERHEAD else 'MISSED'}"
    return ""


if __name__ == "__main__":
    cli.run(main)
