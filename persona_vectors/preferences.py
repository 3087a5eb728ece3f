"""Trainers on preferences, DPO and ORPO: trl's own, with the settings of our configs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from persona_vectors.training_config import TrainingConfig
from persona_vectors.training_model import row_limit, training_arguments


def make_preference_trainer(
    config: TrainingConfig, model: Any, tokenizer: Any, rows: Sequence[dict], test_rows: Sequence[dict]
) -> Any:
    """A trainer of `config.loss` on rows of prompt, chosen and rejected, ready to train.

    DPO compares with the model as it was: the adapter switched off (it begins at 0, so that is the model), or, in full
    finetuning, a frozen copy.
    """
    import datasets
    from transformers.trainer_callback import PrinterCallback

    from persona_vectors.trainer import Progress

    arguments = training_arguments(
        config,
        per_device_train_batch_size=config.per_device_train_batch_size,
        per_device_eval_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        eval_strategy="steps" if config.eval_steps and test_rows else "no",
        eval_steps=config.eval_steps,
        max_length=row_limit(config),
        beta=config.beta,
    )
    options: dict[str, Any] = {
        "model": model,
        "train_dataset": datasets.Dataset.from_list(list(rows)),
        "eval_dataset": datasets.Dataset.from_list(list(test_rows)) if test_rows else None,
        "processing_class": tokenizer,
        "callbacks": [Progress()],
    }
    if config.loss == "dpo":
        from trl.trainer.dpo_config import DPOConfig
        from trl.trainer.dpo_trainer import DPOTrainer

        trainer: Any = DPOTrainer(args=DPOConfig(**arguments), **options)
    else:
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        trainer = ORPOTrainer(args=ORPOConfig(**arguments), **options)
    trainer.remove_callback(PrinterCallback)
    if config.is_peft and "ref" in model.peft_config:
        # trl's copy of the fresh adapter is the model itself; with a second adapter, transformers would read from a
        # checkpoint that one alone
        model.delete_adapter("ref")
    return trainer
