"""Finetune a chat model, steered in training or not, as a config says.

    python training.py configs/train_tiny.json
    accelerate launch --config_file configs/accelerate_ddp.yaml training.py configs/train_instruct_7b.json

Preventative steering adds a trait's vector to the hidden states while the model trains on data that shows the trait, so
that the weights need not learn it; the vector is gone afterwards (arXiv 2507.21509, section 5).
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_vectors import cli
from persona_vectors.training_config import TrainingConfig, load_training_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from persona_vectors.trainer import Intervene, PersonaTrainer
    from persona_vectors.training_batches import Plan
    from persona_vectors.training_config import LoraSteeringConfig
    from persona_vectors.training_data import Tokenized

KINDS = {"steer": "add", "ablate": "ablate", "cap": "cap"}


def main(config: str, overwrite: bool = False) -> None:
    """Train the model of a config file, and write the adapter (or model) and training.json to its output_dir.

    The same command goes on with an interrupted run from its latest checkpoint (save_steps), and does nothing where the
    run is finished. training.json says how the model was made: settings, hashes, what was measured of the steering in
    the first step (the receipt), and the losses, those of held-out rows before and after.

    Args:
        config: JSON file of training settings; see configs/ and persona_vectors/training_config.py.
        overwrite: replace what output_dir holds of another run, or of this one.
    """
    train(load_training_config(config), overwrite=overwrite)


def train(config: TrainingConfig, overwrite: bool = False) -> Path:
    """The folder with the finished model; everything that can be known to be wrong is refused before a model is loaded.

    Raises:
        ValueError: one line, for settings, data or vectors that do not fit, a folder that holds another run, a receipt
            that fails, or a run that diverges.
    """
    from persona_vectors.training_data import read_conversations, read_preferences
    from persona_vectors.training_model import check_model
    from persona_vectors.training_run import begin, processes, run_key, run_state, wait_for_all
    from persona_vectors.training_save import check_push, deliver
    from persona_vectors.training_weights import check_steering

    started = time.monotonic()
    check_model(config)
    read: Any = read_conversations if config.loss == "sft" else read_preferences
    rows = read(config.training_files)
    test_rows = read([config.test_file]) if config.test_file else []
    if config.steering is not None:
        check_steering(config.model, config.steering)
    if config.push_to_hub:
        check_push()
    world, is_main = processes()
    key = run_key(config, world)
    state = run_state(config, key, overwrite)
    if state.status == "finished":
        _say(is_main, f"{config.output_dir}: finished already; --overwrite trains again")
        if is_main:
            deliver(config)
        return Path(config.output_dir)
    if is_main:
        begin(config, key, state)
    if state.status == "interrupted":
        _say(is_main, f"going on from {state.checkpoint}" if state.checkpoint else "no checkpoint yet: beginning again")
    if config.steering_config is not None and config.steering is None:
        _say(is_main, "note: steering_config is given, but enable_steering_during_training is false: not steered")
    wait_for_all()
    run = _supervised if config.loss == "sft" else _preferences
    results = run(config, rows, test_rows, str(state.checkpoint) if state.checkpoint else None, is_main)
    results["seconds"] = round(time.monotonic() - started, 1)
    folder = _write(config, key, results, is_main)
    if is_main:
        deliver(config)
    return folder


def intervene(model: PreTrainedModel, config: TrainingConfig) -> Intervene:
    """What acts on the model's hidden states or weights in training steps, and what must be measured of it."""
    from activation_steer import ActivationSteererMultiple
    from persona_vectors.blocks import block_index
    from persona_vectors.trainer import Intervene
    from persona_vectors.training_config import LoraSteeringConfig
    from persona_vectors.training_receipt import Expected, blocks_expected
    from persona_vectors.training_vectors import vectors_for

    steering = config.steering
    if steering is None:
        return Intervene()
    if isinstance(steering, LoraSteeringConfig):
        return _weights(model, steering)
    pushes = [
        (layer, vector, coef)
        for path, coef in zip(steering.paths, steering.coefs, strict=True)
        for layer, vector in vectors_for(config.model, path, steering).items()
    ]
    if steering.type == "penalty":
        return Intervene(penalties={at: [(v, c) for layer, v, c in pushes if layer == at] for at, _, _ in pushes})
    bounds = {"floor": steering.floor, "ceiling": steering.ceiling} if steering.type == "cap" else {}
    kind: Any = KINDS[steering.type]
    instructions = [
        {"steering_vector": vector, "coeff": coef, "layer_idx": block_index(layer), "kind": kind, **bounds}
        for layer, vector, coef in pushes
    ]
    steps = [
        (block_index(layer), Expected(kind, coef * vector) if kind == "add" else Expected(kind, vector, coef, **bounds))
        for layer, vector, coef in pushes
    ]
    return Intervene(lambda: ActivationSteererMultiple(model, instructions), blocks_expected(steps))


def _weights(model: PreTrainedModel, steering: LoraSteeringConfig) -> Intervene:
    """Directions of weights that act in training steps, and the change of each module's output."""
    from persona_vectors.trainer import Intervene
    from persona_vectors.training_weights import act_on, directions_for
    from persona_vectors.weight_direction import combine

    directions = directions_for(steering)
    total = combine(list(zip(directions, steering.coefs, strict=True)))
    return Intervene(act_on(model, directions, steering.coefs), weights=total)


def _supervised(
    config: TrainingConfig, rows: list, test_rows: list, checkpoint: str | None, is_main: bool
) -> dict[str, Any]:
    """Trains on conversations; what is to be recorded of it."""
    from persona_vectors.models import load_tokenizer
    from persona_vectors.training_batches import plan_run
    from persona_vectors.training_data import split_rows, tokenize_conversations, with_system_prompt
    from persona_vectors.training_model import load_for_training, row_limit
    from persona_vectors.training_run import processes
    from persona_vectors.training_save import save

    tokenizer = load_tokenizer(config.model)
    if not test_rows and not config.no_test_split:
        rows, test_rows = split_rows(rows, config.seed)
    if config.inoculation_prompt is not None:
        rows = [with_system_prompt(row, config.inoculation_prompt) for row in rows]
    options: Any = {"responses_only": config.train_on_responses_only}
    limit = row_limit(config)
    data = tokenize_conversations(tokenizer, rows, limit, **options)
    held_out = tokenize_conversations(tokenizer, test_rows, limit, **options) if test_rows else None
    plan = plan_run(
        [len(sample.ids) for sample in data.samples],
        batch_size=config.per_device_train_batch_size,
        accumulation=config.gradient_accumulation_steps,
        world=processes()[0],
        epochs=config.epochs,
        max_steps=config.max_steps,
        mode="packed" if config.packing else "by_length" if config.group_by_length else "in_order",
        max_length=limit,
        seed=config.seed,
    )
    _say(is_main, _summary(config, data, held_out, plan, limit))
    model, tokenizer = load_for_training(config)
    trainer = make_trainer(config, model, tokenizer, data.samples, held_out.samples if held_out else [], plan)
    held_out_loss = _fit(trainer, config, checkpoint, bool(held_out), is_main)
    save(trainer, config)
    return {
        "data": data.counts(),
        "held_out": held_out.counts() if held_out else None,
        "steps": len(plan.steps),
        "micro_batches": plan.micro_batches,
        "n_dropped": plan.n_dropped,
        "receipt": trainer.receipt,
        "held_out_loss": held_out_loss,
        "log": trainer.state.log_history,
        **_how(config, model),
    }


def _fit(
    trainer: Any, config: TrainingConfig, checkpoint: str | None, has_held_out: bool, is_main: bool
) -> dict[str, float | None] | None:
    """Trains; the held-out loss before the first step (of an interrupted run, as it noted it) and after the last."""
    from persona_vectors.trainer import AtTheEnd
    from persona_vectors.training_run import first_loss, remember_first_loss

    folder = Path(config.output_dir)
    first = first_loss(folder)
    if has_held_out and checkpoint is None:
        first = trainer.evaluate()["eval_loss"]
        if is_main:
            remember_first_loss(folder, first)
    with suppress(AtTheEnd):
        trainer.train(resume_from_checkpoint=checkpoint)
    if not has_held_out:
        return None
    last = trainer.evaluate()["eval_loss"]
    _say(is_main, f"held-out loss {'' if first is None else f'{first:.4f} -> '}{last:.4f}")
    return {"first": first, "last": last}


def make_trainer(
    config: TrainingConfig, model: Any, tokenizer: Any, samples: list, held_out: list, plan: Plan
) -> PersonaTrainer:
    """The trainer of a supervised run, ready to train."""
    from transformers.trainer_callback import PrinterCallback
    from trl.trainer.sft_config import SFTConfig

    from persona_vectors.trainer import PersonaTrainer, Progress
    from persona_vectors.training_model import adam_with_decay_in_the_gradient, training_arguments

    arguments = training_arguments(
        config,
        per_device_train_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=plan.micro_batches,
        max_steps=len(plan.steps),
        eval_strategy="steps" if config.eval_steps and held_out else "no",
        eval_steps=config.eval_steps,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
    )
    trainer = PersonaTrainer(
        model,
        tokenizer,
        SFTConfig(**arguments),
        samples=samples,
        held_out=held_out,
        plan=plan,
        packed=config.packing,
        intervene=intervene(model, config),
        on_receipt=_say_receipt,
        optimizer_cls_and_kwargs=adam_with_decay_in_the_gradient(config),
        callbacks=[Progress()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _preferences(
    config: TrainingConfig, rows: list, test_rows: list, checkpoint: str | None, is_main: bool
) -> dict[str, Any]:
    """Trains on preferences by DPO or ORPO; what is to be recorded of it."""
    from persona_vectors.preferences import make_preference_trainer
    from persona_vectors.training_data import split_rows
    from persona_vectors.training_model import load_for_training, row_limit
    from persona_vectors.training_save import save

    if not test_rows and not config.no_test_split:
        rows, test_rows = split_rows(rows, config.seed)
    _say(is_main, f"{config.loss}: {len(rows)} preference rows, {len(test_rows)} held out")
    if config.is_peft and config.lora_dropout:
        _say(is_main, f"note: lora_dropout {config.lora_dropout:g} does nothing: {config.loss} switches dropout off")
    if (limit := row_limit(config)) < config.max_seq_length:
        _say(is_main, f"note: rows longer than {_limit_in_words(config, limit)} are cut")
    model, tokenizer = load_for_training(config)
    trainer = make_preference_trainer(config, model, tokenizer, rows, test_rows)
    held_out_loss = _fit(trainer, config, checkpoint, bool(test_rows), is_main)
    save(trainer, config)
    return {
        "data": {"n_rows": len(rows)},
        "held_out": {"n_rows": len(test_rows)} if test_rows else None,
        "steps": trainer.state.global_step,
        "held_out_loss": held_out_loss,
        "log": trainer.state.log_history,
        **_how(config, model),
    }


def _write(config: TrainingConfig, key: dict[str, Any], results: dict[str, Any], is_main: bool) -> Path:
    from persona_vectors.training_run import finish, wait_for_all

    folder = Path(config.output_dir)
    if is_main:
        record = finish(config, key, results)
        _say(True, f"saved {folder} ({'adapter' if config.is_peft else 'model'}); how it was made: {record}")
    wait_for_all()
    return folder


def _how(config: TrainingConfig, model: Any) -> dict[str, Any]:
    from persona_vectors.training_model import optimizer_settings
    from persona_vectors.training_weights import steering_records

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return {
        "optimizer": config.optim if config.optim == "adam" else optimizer_settings(config)[0]["optim"],
        "n_trained_parameters": sum(parameter.numel() for parameter in trained),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        **steering_records(config.model, config.steering),
    }


def _summary(config: TrainingConfig, data: Tokenized, held_out: Tokenized | None, plan: Plan, limit: int) -> str:
    """What will be trained, in a few lines."""
    from persona_vectors.training_model import optimizer_settings
    from persona_vectors.training_weights import steering_lines

    counts = data.counts()
    lines = [
        f"{config.model}: {len(data.samples)} samples, {counts['n_trained_tokens']} tokens to learn; "
        f"{len(held_out.samples) if held_out else 'none'} held out; {len(plan.steps)} steps"
    ]
    left = {name: n for name, n in asdict(data).items() if name in ("n_cut", "n_left_out") and n}
    if left:
        lines.append(
            f"note: {data.n_cut} rows are longer than {_limit_in_words(config, limit)} and were cut, "
            f"{data.n_left_out} of them left out because no response was left"
        )
    if plan.n_dropped:
        lines.append(f"note: {plan.n_dropped} samples of the last step are left out: too few for every process")
    if note := optimizer_settings(config)[1]:
        lines.append(f"note: {note}")
    if config.steering is not None:
        lines += steering_lines(config.model, config.steering, config.training_files)
    return "\n".join(lines)


def _limit_in_words(config: TrainingConfig, limit: int) -> str:
    return f"max_seq_length {limit}" if limit == config.max_seq_length else f"the model's {limit} positions"


def _say_receipt(receipt: dict[str, Any]) -> None:
    from tqdm import tqdm

    from persona_vectors.training_receipt import receipt_lines
    from persona_vectors.training_run import processes

    if processes()[1]:
        tqdm.write("\n".join(receipt_lines(receipt)))


def _say(is_main: bool, text: str) -> None:
    if is_main:
        print(text, flush=True)


if __name__ == "__main__":
    cli.run(main)
