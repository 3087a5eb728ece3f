"""Follow conversations along an axis, or any vectors: each turn's projection, token by token, and whether it drifts.

    python -m eval.drift --model_name models/tiny-persona --transcripts results/capping/transcripts_uncapped.jsonl \
        --vector_path persona_vectors/tiny-persona/assistant_axis.pt --layer 3 --output_dir results/drift
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from persona_vectors import cli

if TYPE_CHECKING:
    from eval.transcripts import Transcript
    from persona_vectors.capping import Cap
    from persona_vectors.tokens import Turn


def main(
    model_name: str,
    transcripts: list[str],
    vector_path: list[str],
    layer: list[int],
    output_dir: str = "results/drift",
    format: Literal["auto", "chat", "raw"] = "auto",
    cap: str | None = None,
    max_seq_len: int = 8192,
    n_random: int = 200,
    seed: int = 0,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device_map: str = "auto",
) -> None:
    """Project every turn of conversations on vectors at layers, in one forward pass a conversation.

    A projection is h.v/|v|, in units of the hidden state, positive along the vector; a turn's is the mean over the
    tokens of its content. Drift is the slope over the assistant's turns, beside slopes of random directions in the same
    pass. Written to the output folder, each with its sidecar: turns.csv (a row a turn, vector and layer), drift.csv (a
    row a conversation, vector and layer), tokens.jsonl (a line a token) and report.html, which shows the conversation
    beside the curve.

    Args:
        model_name: hub id, model folder or adapter folder.
        transcripts: files, several: .json (a list of messages, {"messages": [...]}, or a list of either), or .jsonl
            ({"messages": [...]} a line).
        vector_path: vector files .pt, one or several; for the assistant axis, positive is towards the assistant.
        layer: hidden_states indices (0 is the embedding output), one or several.
        output_dir: folder for the files; existing ones are replaced.
        format: how turns are written for the model: chat (its template), raw (System: ... User: ...), or auto.
        cap: cap.json of eval.capping: conversations are read a second time under this cap.
        max_seq_len: most tokens of a conversation, which is never cut: a longer one is refused.
        n_random: random directions beside each vector and layer.
        seed: seeds the random directions.
        dtype: precision of the model; auto is the checkpoint's own on CUDA, float32 on CPU.
        device_map: auto, cpu, or a device such as cuda:0.
    """
    arguments = dict(locals())
    from eval.drift_rows import load_directions, read_conversations, summary_lines
    from eval.transcripts import read_transcripts
    from persona_vectors.models import load_config, load_model, load_tokenizer

    if n_random < 20:
        raise ValueError(f"--n_random is {n_random}; expected at least 20, for the middle 95% of them")
    if max_seq_len < 1:
        raise ValueError(f"--max_seq_len is {max_seq_len}; expected at least 1")
    folder = _output_folder(output_dir)
    found = read_transcripts(transcripts)
    config = load_config(model_name)
    directions = load_directions(model_name, vector_path, layer, config)
    capping = None if cap is None else _load_cap(cap, model_name)
    limit = min(max_seq_len, getattr(config, "max_position_embeddings", None) or max_seq_len)
    tokenized = _tokenize(load_tokenizer(model_name), found, format, limit)
    model, _tokenizer = load_model(model_name, dtype=dtype, device_map=device_map)
    readings = read_conversations(model, found, tokenized, directions, capping, n_random=n_random, seed=seed)

    from eval.drift_page import write_results

    notes = [capping.note] if capping is not None and capping.note else []
    report = write_results(readings, directions, folder, arguments, notes)
    print("\n".join([*summary_lines(readings, directions), *(f"note: {note}" for note in notes)]))
    print(f"written to {report.parent}; open {report}")


def _output_folder(output_dir: str) -> Path:
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {output_dir} is a file; give a folder")
    return folder


def _load_cap(path: str, model_name: str) -> Cap:
    from persona_vectors.capping import load_cap

    cap = load_cap(path, model_name)
    if cap.positions != "all":
        raise ValueError(
            f"the cap of {path} acts at {cap.positions} tokens; a transcript that is read at once can only show a cap "
            "at all tokens (eval.capping --positions all)"
        )
    return cap


def _tokenize(
    tokenizer: Any, transcripts: list[Transcript], fmt: Literal["auto", "chat", "raw"], limit: int
) -> list[tuple[tuple[int, ...], tuple[Turn, ...]]]:
    """Ids and turns of each conversation; a ValueError names the first that cannot be read whole."""
    from persona_vectors.drift import check_room
    from persona_vectors.tokens import tokenize_turns

    found = []
    for one in transcripts:
        try:
            ids, turns = tokenize_turns(tokenizer, one.messages, fmt)
            check_room(ids, turns, limit)
        except ValueError as error:
            raise ValueError(f"{one.name}: {error}") from None
        found.append((ids, turns))
    return found


if __name__ == "__main__":
    cli.run(main, aliases={"model": "model_name", "layers": "layer"})
