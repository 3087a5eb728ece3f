"""The trainer of one supervised run: trl's, reading what the plan says, steered in training steps and only there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.checkpoint import set_checkpoint_early_stop
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import TrainerCallback
from trl.trainer.sft_trainer import SFTTrainer

from persona_vectors.blocks import device_of, read_blocks
from persona_vectors.training_batches import ROW_TOKENS, MicroBatch, Plan, packed_batch, padded_batch
from persona_vectors.training_receipt import Expected, check_step, check_untouched, read_around
from persona_vectors.training_tokens import TrainingSample
from persona_vectors.training_weights_receipt import check_modules, check_modules_untouched, read_modules
from persona_vectors.weight_direction import WeightDirection

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EVAL_TOKENS = 8_192  # of a batch of held-out samples, padding included


@dataclass(frozen=True)
class Intervene:
    """What acts on hidden states or weights in training steps.

    Attributes:
        steering: opens the steering for one micro-batch, forward and backward.
        expected: block index -> what must then be measured there (the receipt).
        penalties: layer -> its vectors with their coefficients, for a projection penalty.
        weights: the change of the weights that must then be measured at each module, coefficients folded in.
    """

    steering: Callable[[], AbstractContextManager] = nullcontext
    expected: dict[int, Expected] | None = None
    penalties: dict[int, list[tuple[Float[Tensor, " d_model"], float]]] | None = None
    weights: WeightDirection | None = None


class PersonaTrainer(SFTTrainer):
    """trl's SFTTrainer with a plan of batches, steering in training steps, and a held-out loss by token."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        args: Any,
        *,
        samples: Sequence[TrainingSample],
        held_out: Sequence[TrainingSample],
        plan: Plan,
        packed: bool,
        intervene: Intervene,
        on_receipt: Callable[[dict[str, Any]], None] | None = None,
        **more: Any,
    ):
        import datasets

        self._samples, self._held_out = samples, held_out
        self._plan, self._packed, self._intervene = plan, packed, intervene
        self.receipt: dict[str, Any] | None = None
        self._on_receipt = on_receipt
        self.penalty_sums = [0.0, 0]
        not_read = datasets.Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]})  # the plan and held_out are
        super().__init__(
            model=model,
            args=args,
            processing_class=tokenizer,
            train_dataset=not_read,
            eval_dataset=not_read if held_out else None,
            data_collator=self._collate,
            **more,
        )
        if packed:
            check_packing(self._net, samples, self._pad_id)

    def _collate(self, batch: Sequence[int]) -> dict[str, Tensor]:
        samples = [self._samples[number] for number in batch]
        return packed_batch(samples, self._pad_id) if self._packed else padded_batch(samples, self._pad_id)

    @property
    def _net(self) -> Any:
        """The model without what wraps it for several processes."""
        return self.model

    @property
    def _pad_id(self) -> int:
        pad: Any = self._tokenizer.pad_token_id
        return int(pad or 0)

    def get_train_dataloader(self) -> DataLoader:
        """This process's micro-batches of the whole run, as one pass."""
        batches: list[MicroBatch] = self._plan.of_process(self.accelerator.process_index)
        return DataLoader(range(len(self._samples)), batch_sampler=batches, collate_fn=self._collate)  # pyright: ignore

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:  # pyright: ignore
        """One micro-batch, forward and backward, steered; the first of a run also writes the receipt."""
        if self.receipt is not None or (self._intervene.expected is None and self._intervene.weights is None):
            with self._intervene.steering():
                return super().training_step(model, inputs, num_items_in_batch)
        # recomputation usually ends at the last tensor that the backward pass needs, before a block's hooks are reached
        whole = set_checkpoint_early_stop(False)
        change, net = self._intervene.weights, self._net
        with whole, self._intervene.steering(), read_around(net) as blocks, read_modules(net, change) as modules:
            loss = super().training_step(model, dict(inputs), num_items_in_batch)
        n_calls = 2 if self.args.gradient_checkpointing else 1
        receipt = check_step(blocks, self._intervene.expected or {}, n_calls) | check_modules(modules, n_calls)
        with read_around(net) as blocks, read_modules(net, change, acts=False) as modules:
            self.held_out_loss(self._samples[:1])
        check_untouched(blocks)
        if change is not None:
            check_modules_untouched(modules)
        self.receipt = {**receipt, "evaluation": f"unchanged at every block{' and module' if change else ''}"}
        if self._on_receipt is not None:
            self._on_receipt(self.receipt)
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss by token, and the projection penalty where there is one."""
        penalties = self._intervene.penalties
        if return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not penalties or not self._net.training:
            return self._token_loss(model, inputs, num_items_in_batch)
        trained = inputs["labels"] != -100
        with read_blocks(self._net, sorted(penalties)) as hidden:
            loss = self._token_loss(model, dict(inputs), num_items_in_batch)
            changed = dict(hidden)
            reading = {name: value for name, value in inputs.items() if name != "labels"}
            unwrapped: Any = self.accelerator.unwrap_model(model, keep_torch_compile=False)
            with torch.no_grad(), unwrapped.disable_adapter():
                unwrapped.get_decoder()(**reading, use_cache=False)
            base = dict(hidden)
        total = torch.zeros((), device=loss.device)
        for layer, pushes in penalties.items():
            change = (changed[layer].float() - base[layer].float())[trained]  # (tokens, d_model)
            for vector, coef in pushes:
                unit = vector.to(change.device) / vector.norm() ** 2
                total = total + coef * ((change @ unit) ** 2).sum()
        n_tokens = trained.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        world = self.accelerator.num_processes if num_items_in_batch is not None else 1
        penalty = total / n_tokens.to(total.device) * world
        self.penalty_sums = [self.penalty_sums[0] + float(penalty.detach()), self.penalty_sums[1] + 1]
        return loss + penalty

    def _token_loss(self, model: Any, inputs: Any, num_items_in_batch: Any) -> Tensor:
        """The sum of learned tokens' losses over their number in the whole step, all processes included.

        On a GPU by trl's fused kernel. Elsewhere that falls back to logits of every position, twice; here they are
        computed where something is learned.
        """
        if self.accelerator.device.type == "cuda" or self.aux_loss_enabled:
            return super().compute_loss(model, inputs, False, num_items_in_batch)
        labels = inputs["labels"][:, 1:]
        learned = torch.nn.functional.pad(labels != -100, (0, 1))  # the position before a learned token predicts it
        with logits_only_at(self._net, learned):
            reading = {name: value for name, value in inputs.items() if name != "labels"}
            logits = model(**reading, use_cache=False).logits
        total = torch.nn.functional.cross_entropy(
            logits.float().reshape(-1, logits.shape[-1]), labels[labels != -100], reduction="sum"
        )
        if num_items_in_batch is None:
            return total / learned.sum()
        return total / torch.as_tensor(num_items_in_batch, device=total.device) * self.accelerator.num_processes

    @torch.no_grad()
    def held_out_loss(self, samples: Sequence[TrainingSample]) -> float:
        """Mean loss of a learned token over the samples, in nats, unsteered; each process reads its share."""
        model: Any = self.model_wrapped if self.is_fsdp_enabled else self._net
        was_training = model.training
        model.eval()
        batches = _by_tokens(samples, EVAL_TOKENS)
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        sums = torch.zeros(2, dtype=torch.float64, device="cpu")
        for start in range(0, len(batches), world):  # all processes call the model equally often, as FSDP needs
            mine = start + rank < len(batches)
            batch = padded_batch(batches[start + rank if mine else start], self._pad_id)
            batch = {name: value.to(device_of(self._net)) for name, value in batch.items()}
            labels = batch.pop("labels")[:, 1:]
            with self.compute_loss_context_manager():
                logits = model(**batch, use_cache=False).logits[:, :-1].float()
            losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
            if mine:
                sums += torch.tensor([float(losses), float((labels != -100).sum())], dtype=torch.float64)
        model.train(was_training)
        total = self.accelerator.reduce(sums.to(self.accelerator.device), reduction="sum")
        return float(total[0] / total[1])

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        """The held-out loss, logged as eval_loss."""
        metrics = {"eval_loss": self.held_out_loss(self._held_out)}
        self.state.log_history.append({"step": self.state.global_step, **metrics})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def create_model_card(self, *_args: Any, **_kwargs: Any) -> None:
        """Nothing: the sidecar says how the model was made, and trl's card would say it another way."""


@contextmanager
def logits_only_at(model: Any, positions: Bool[Tensor, "batch seq"]) -> Iterator[None]:
    """Within the context the model's logits are (1, n, vocabulary): those of the n chosen positions, row by row."""

    def choose(_head: Any, args: tuple) -> tuple:
        return (args[0][positions.to(args[0].device)][None], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def check_packing(model: Any, samples: Sequence[TrainingSample], pad_id: int) -> None:
    """Refuses, with a ValueError, packing for a model in which packed samples see each other.

    How positions that start again keep samples apart is up to each architecture: so it is measured.
    """
    samples = [sample.cut(ROW_TOKENS // 2) for sample in samples[:2]]  # so that both fit one row
    if len(samples) < 2:
        return
    was_training = model.training
    model.eval()
    device = device_of(model)
    packed = packed_batch(samples, pad_id)  # the longer one first
    longer, shorter = sorted(samples, key=lambda sample: -len(sample.ids))
    alone = model(input_ids=torch.tensor([shorter.ids], device=device), use_cache=False).logits[0].float()
    inputs = {name: packed[name].to(device) for name in ("input_ids", "position_ids")}
    logits = model(**inputs, use_cache=False).logits[0].float()
    together = logits[len(longer.ids) :][: len(alone)]
    model.train(was_training)
    error = float((together - alone).norm() / alone.norm())
    if not error < (1e-3 if model.dtype == torch.float32 else 5e-2):
        raise ValueError(
            f"packing: a sample's logits change by {error:.2g} of their size when another stands before it, so this "
            "model does not keep packed samples apart; set packing to false"
        )


def _by_tokens(samples: Sequence[TrainingSample], budget: int) -> list[list[TrainingSample]]:
    """The samples by length in batches of at most `budget` padded tokens, at least one a batch."""
    batches: list[list[TrainingSample]] = []
    for sample in sorted(samples, key=lambda sample: len(sample.ids)):
        if batches and len(sample.ids) * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(sample)
        else:
            batches.append([sample])
    return batches


class AtTheEnd(Exception):
    """The checkpoint that a run goes on from is of its last step: it is read, and nothing is left to train."""


class Progress(TrainerCallback):
    """A progress bar with the latest loss, on the main process; and the end of a run whose loss is no number.

    Raises:
        AtTheEnd: no step is left. Left alone, the loop would train one more where an epoch is not over.
        ValueError: the run has diverged.
    """

    def __init__(self) -> None:
        self._bar: Any = None

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_more: Any) -> None:
        if state.global_step >= state.max_steps:
            raise AtTheEnd
        if state.is_world_process_zero:
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step")

    def on_step_end(self, _args: Any, _state: Any, _control: Any, **_more: Any) -> None:
        if self._bar is not None:
            self._bar.update()

    def on_log(self, _args: Any, state: Any, _control: Any, logs: dict | None = None, **_more: Any) -> None:
        logs = logs or {}
        if not math.isfinite(logs.get("loss", 0.0)) or not math.isfinite(logs.get("grad_norm", 0.0)):
            raise ValueError(
                f"step {state.global_step}: loss {logs.get('loss')}, gradient norm {logs.get('grad_norm')}; the run "
                "has diverged: lower learning_rate, or steering_coef if it steers"
            )
        if self._bar is not None and "loss" in logs:
            self._bar.set_postfix(loss=f"{logs['loss']:.3f}")

    def on_train_end(self, _args: Any, _state: Any, _control: Any, **_more: Any) -> None:
        if self._bar is not None:
            self._bar.close()
