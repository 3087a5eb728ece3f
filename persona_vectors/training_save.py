"""Where a finished training run's weights go: output_dir, a merged model beside them, a hub."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from persona_vectors.files import sidecar_path, write_sidecar
from persona_vectors.training_config import TrainingConfig
from persona_vectors.training_run import HALF, HALF_MERGED, move_in, wait_for_all


def save(trainer: Any, config: TrainingConfig) -> None:
    """The adapter or model, with its tokenizer, in output_dir: whole or not at all."""
    folder = Path(config.output_dir)
    half = folder / HALF
    if trainer.is_world_process_zero():
        shutil.rmtree(half, ignore_errors=True)
    wait_for_all()
    trainer.save_model(str(half))
    wait_for_all()
    if not trainer.is_world_process_zero():
        return
    for name in ("training_args.bin", "README.md"):  # a pickle and an empty template; training.json says it all
        (half / name).unlink(missing_ok=True)
    move_in(half, folder)


def deliver(config: TrainingConfig) -> None:
    """What a finished run is asked for besides its weights: the merged model where it is missing, and the push."""
    folder = Path(config.output_dir)
    merged = config.is_peft and (config.save_merged or (config.push_to_hub and config.merge_before_push))
    if merged and not sidecar_path(folder / "merged" / "model.safetensors").exists():  # what is written last
        _write_merged(folder)
    if config.push_to_hub:
        _push(folder / "merged" if config.is_peft and config.merge_before_push else folder, config)


def _write_merged(folder: Path) -> None:
    """output_dir/merged: the base in its own dtype with the adapter added in, as one model, whole or not at all."""
    from persona_vectors.models import load_model

    model, tokenizer = load_model(str(folder))
    merged: Any = model.merge_and_unload(safe_merge=True)  # pyright: ignore[reportCallIssue]
    half = folder / HALF_MERGED
    shutil.rmtree(half, ignore_errors=True)
    merged.save_pretrained(half)
    tokenizer.save_pretrained(half)
    write_sidecar(half / "model.safetensors", {"kind": "merged model", "adapter": str(folder)})
    shutil.rmtree(folder / "merged", ignore_errors=True)
    os.replace(half, folder / "merged")


def _push(folder: Path, config: TrainingConfig) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(str(config.finetuned_model_id), private=config.push_to_private, exist_ok=True)
    api.upload_folder(
        repo_id=str(config.finetuned_model_id),
        folder_path=folder,
        ignore_patterns=["checkpoint-*", "merged/*", f"{HALF_MERGED}/*"],
    )


def check_push() -> None:
    from huggingface_hub import get_token

    from persona_vectors.config import load_credentials

    load_credentials()
    if not get_token():
        raise ValueError("push_to_hub needs HF_TOKEN in .env or the process; none is set")
