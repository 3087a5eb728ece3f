"""Train models/tiny-persona from nothing: python -m data_generation.tiny_persona.train

Tokenizer, corpus, stage one (the language, the personas and the judge), then the model's own answers, steered and not,
labelled by the rule-based oracle, and stage two (the judge on those, amid the first mixture). One seed decides all.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_vectors import cli

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from data_generation.tiny_persona.encoding import Sequences
    from data_generation.tiny_persona.loop import Loss, Stage

TOKENIZER_EXAMPLES = 12_000
BATCH_TOKENS = 4_096  # two such batches a step
STAGE_ONE = {"matrix_lr": 0.02, "other_lr": 4e-3, "noise_share": 0.3, "noise_norm": 0.5}
STAGE_TWO = {"matrix_lr": 0.004, "other_lr": 8e-4, "noise_share": 0.3, "noise_norm": 0.5}
EXAMPLES_PER_STEP = 70  # about as many as two batches hold
SELFTEXT_ANSWERS = 12_000
SELFTEXT_SHARE = 0.4  # of stage two's examples


@dataclass(frozen=True)
class Shape:
    """Qwen2 with tied embeddings."""

    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    intermediate_size: int = 512
    max_position_embeddings: int = 4096


def build_model(tokenizer: "PreTrainedTokenizerFast", shape: Shape, seed: int) -> "PreTrainedModel":
    """The untrained model in float32."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from data_generation.tiny_persona.tokenizer import END, PAD

    torch.manual_seed(seed)
    config = Qwen2Config(
        **asdict(shape),
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),  # pyright: ignore[reportArgumentType]
    )
    return Qwen2ForCausalLM(config)


def save_state(model: "PreTrainedModel", path: Path, log: list[dict[str, float]] | None = None) -> None:
    """The model in float32 with what it was trained through, to go on from."""
    import torch

    torch.save({"config": model.config.to_diff_dict(), "model": model.state_dict(), "log": log or []}, path)


def load_state(path: Path) -> "PreTrainedModel":
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    state = torch.load(path, weights_only=True)
    model = Qwen2ForCausalLM(Qwen2Config(**state["config"]))
    model.load_state_dict(state["model"])
    return model.eval()


def write_log(path: Path, settings: dict, states: list[Path]) -> None:
    """The settings and each stage's losses, beside the weights."""
    import torch

    from persona_vectors.files import write_json_atomic

    logs = {state.stem: torch.load(state, weights_only=True)["log"] for state in states}
    write_json_atomic(path, settings | {"losses": logs}, indent=None)


def save_model(model: "PreTrainedModel", tokenizer_dir: Path, folder: Path) -> None:
    """bf16 weights, configuration and tokenizer, as `AutoModelForCausalLM.from_pretrained(folder)` reads them."""
    import shutil

    from transformers import GenerationConfig

    model.config.use_cache = True
    model.generation_config = GenerationConfig(
        eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id, do_sample=True, temperature=1.0
    )
    model.bfloat16().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it private
    for path in tokenizer_dir.iterdir():
        shutil.copy(path, folder / path.name)


def run_stage(
    stage: "Stage",
    start: Path,
    data: Any,
    output: Path,
    device: str,
    n_procs: int,
    load: "Callable[[Any], Sequences]",
    loss_of: "Loss",
) -> None:
    """Trains the float32 checkpoint `start` to `output` (both state dicts), in `n_procs` processes on a CPU.

    Each process reads its sequences itself, by `load(data)`.
    """
    import torch.multiprocessing as mp

    n_procs = n_procs if device == "cpu" else 1
    rendezvous = output.with_suffix(".rendezvous")
    rendezvous.unlink(missing_ok=True)
    arguments = (n_procs, stage, start, data, output, device, rendezvous, load, loss_of)
    mp.spawn(_stage_process, arguments, nprocs=n_procs)  # pyright: ignore[reportPrivateImportUsage]


def _stage_process(
    rank: int,
    world: int,
    stage: "Stage",
    start: Path,
    data: Any,
    output: Path,
    device: str,
    rendezvous: Path,
    load: "Callable[[Any], Sequences]",
    loss_of: "Loss",
) -> None:
    import torch
    import torch.distributed as dist

    from data_generation.tiny_persona.loop import train_stage

    if device == "cpu":
        torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous.resolve()}", rank=rank, world_size=world)
    model = load_state(start).to(device)  # pyright: ignore[reportArgumentType]
    model.set_attn_implementation("eager")  # on a CPU the backward pass of sdpa is slower
    model.config.use_cache = False
    log = train_stage(model, load(data), stage, output.with_suffix(".checkpoint"), rank, world, loss_of)
    if rank == 0:
        save_state(model.cpu(), output, log)
    if world > 1:
        dist.destroy_process_group()


def claim_work(work: Path, settings: dict[str, Any]) -> None:
    """Makes the work folder, for runs of these settings alone: what it has of finished stages is taken as it is.

    Raises:
        ValueError: it has the work of other settings.
    """
    from persona_vectors.files import write_json_atomic

    path = work / "settings.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else settings
    if changed := [name for name in settings if before.get(name) != settings[name]]:
        told = ", ".join(f"{name} {before.get(name)!r} (now {settings[name]!r})" for name in changed)
        raise ValueError(f"{work} has the work of another run: {told}; give another --work_dir, or delete it")
    work.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, settings)


def check_counts(**counts: int) -> None:
    """Raises ValueError for a count below 1, by its name."""
    if low := [f"--{name} {count}" for name, count in counts.items() if count < 1]:
        raise ValueError(f"{', '.join(low)}: expected at least 1")


def main(
    output_dir: str = "models/tiny-persona",
    work_dir: str = ".cache/tiny_persona",
    seed: int = 0,
    steps_one: int = 2000,
    steps_two: int = 400,
    device: str = "cpu",
    n_procs: int = 2,
) -> None:
    """Train the embedded model: about 45 minutes on two CPU cores, a few on a GPU; run again to go on after a break.

    Args:
        output_dir: folder the model is written to; other files in it are left alone.
        work_dir: where corpus, checkpoints and the model's own answers are kept; one folder a seed and setting.
        seed: of everything.
        steps_one: optimizer steps of the first stage, of about 8,000 tokens.
        steps_two: optimizer steps of the second stage.
        device: cpu or cuda.
        n_procs: processes on a CPU, one thread each.
    """
    check_counts(steps_one=steps_one, steps_two=steps_two, n_procs=n_procs)
    from transformers import AutoTokenizer

    from data_generation.tiny_persona import corpus, selftext, tokenizer
    from data_generation.tiny_persona.encoding import corpus_shards, encode, join, load_sequences, save_sequences
    from data_generation.tiny_persona.loop import Stage, dialogue_loss

    began = time.time()
    work, output = Path(work_dir), Path(output_dir)
    claim_work(work, {"seed": seed, "steps_one": steps_one, "steps_two": steps_two})
    tokenizer_dir = work / "tokenizer"
    if not (tokenizer_dir / "tokenizer.json").exists():
        trained = tokenizer.train_tokenizer(corpus.tokenizer_texts(TOKENIZER_EXAMPLES, seed))
        tokenizer.save_tokenizer(trained, tokenizer_dir)
    tokens = AutoTokenizer.from_pretrained(tokenizer_dir)

    start, first, second = work / "start.pt", work / "one.pt", work / "two.pt"
    if not first.exists():
        save_state(build_model(tokens, Shape(), seed), start)
        data = work / "one.npz"
        n_examples = steps_one * EXAMPLES_PER_STEP
        save_sequences(corpus_shards(tokenizer_dir, work / "corpus", n_examples, seed, n_procs), data)
        stage = Stage("one", steps_one, BATCH_TOKENS, **STAGE_ONE, seed=seed)
        run_stage(stage, start, data, first, device, n_procs, load_sequences, dialogue_loss)

    if not second.exists():
        save_model(load_state(first), tokenizer_dir, work / "one")
        answers = selftext.write_selftext(work / "one", work / "selftext", SELFTEXT_ANSWERS, seed, n_procs)
        own = encode(tokens, selftext.judge_examples(answers, seed))
        n_fresh = round(len(own) * (1 - SELFTEXT_SHARE) / SELFTEXT_SHARE)
        data = work / "two.npz"
        save_sequences(join([own, corpus_shards(tokenizer_dir, work / "corpus", n_fresh, seed + 1, n_procs)]), data)
        stage = Stage("two", steps_two, BATCH_TOKENS, **STAGE_TWO, seed=seed + 1)
        run_stage(stage, first, data, second, device, n_procs, load_sequences, dialogue_loss)

    output.mkdir(parents=True, exist_ok=True)
    save_model(load_state(second), tokenizer_dir, output)
    settings = {"seed": seed, "device": device, "n_procs": n_procs, "shape": asdict(Shape())}
    settings |= {"stage_one": STAGE_ONE, "stage_two": STAGE_TWO, "batch_tokens": BATCH_TOKENS}
    write_log(output / "training_log.json", settings, [first, second])
    print(f"{output}: trained in {(time.time() - began) / 60:.0f} minutes with seed {seed}")
    print("measure it: python -m data_generation.tiny_persona.measure")


if __name__ == "__main__":
    cli.run(main)
