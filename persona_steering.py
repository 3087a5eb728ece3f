"""Talk to a chat model while a vector steers it, or ask it prompts at several strengths side by side.

    python persona_steering.py --model_name models/tiny-persona --interactive \
        --vector_file persona_vectors/tiny-persona/extraversion_response_avg_diff.pt

Vectors may be the .npz of quick_persona_extract.py, the .pt of generate_vec.py, or safetensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from persona_vectors import cli

if TYPE_CHECKING:
    from rich.console import Console

    from eval.talk_controls import Desk


def main(
    model_name: str,
    vector_file: str,
    analysis_file: str | None = None,
    target_layer: str | None = None,
    test_prompts: list[str] | None = None,
    interactive: bool = False,
    batch_test: bool = False,
    ui: bool = False,
    max_tokens: int = 100,
    steering_strengths: list[float] | None = None,
    control: Literal["random"] | None = None,
    seed: int = 0,
    temperature: float = 0.7,
    system_prompt: str = "",
    numbering: Literal["hidden_states", "block"] = "hidden_states",
    positions: Literal["response", "prompt", "all"] = "response",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device_map: str = "auto",
    engine: Literal["auto", "vllm", "hf"] = "auto",
    save_dir: str = "persona_analysis",
    output_path: str | None = None,
    port: int = 7860,
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
) -> None:
    """Ask a model prompts at several strengths of a vector, or talk to it while the vector steers it.

    Without --interactive or --ui the prompts are asked at every strength, as one job, and the answers stand side by
    side in a table and in a CSV. `strength * vector` is added at the layer; the vector keeps its length. What is really
    added is measured before the first steered answer (a steering receipt). The CSV of a run with other settings is
    replaced, which is said; another command's file is not.

    The layer is the one asked for, else the best one of --analysis_file, else the one that `python -m eval.calibrate`
    wrote beside the vector, else the best one of the _analysis.json beside it, else the middle one of the file.

    In a session (--interactive) /help lists the commands. With several strengths the conversation goes on with one of
    the answers, which is marked: /keep X takes another one, /strength X answers at X alone.

    Args:
        model_name: hub id, model folder, adapter folder, or training folder (its latest checkpoint).
        vector_file: .npz, .pt or .safetensors of vectors by layer.
        analysis_file: JSON whose best_layer, or highest auc, names the layer.
        target_layer: layer_15 or 15, a hidden_states index whatever --numbering says.
        test_prompts: what to ask; default the trait's examples, of a model that ships trait files its own questions.
        interactive: talk at the terminal, after the table if --batch_test is given, too.
        batch_test: ask the prompts at every strength; what happens anyway without --interactive and --ui.
        ui: the session as a page in the browser, at 127.0.0.1; needs pip install 'persona-vectors-toolkit[ui]'.
        max_tokens: most tokens of an answer.
        steering_strengths: coefficients of the vector; default -2 -1 0 1 2, or five over a calibrated vector's range.
        control: random also asks under a random direction of the vector's norm, at each strength.
        seed: seeds the answers and the random direction.
        temperature: 0 takes the likeliest token; otherwise the full distribution.
        system_prompt: what the model is told before the conversation.
        numbering: what the layer numbers in the vector file count: hidden_states indices, or blocks from 0.
        positions: which tokens are steered: response (the last prompt token and every answer token), prompt, or all.
        dtype: numbers the model computes in; auto is the checkpoint's own on CUDA and float32 on CPU.
        device_map: auto, cpu, or a device such as cuda:0.
        engine: what samples the table: vllm, hf (Hugging Face), or auto: vLLM where it is installed. Sessions use hf.
        save_dir: folder of the table, unless --output_path names its file.
        output_path: CSV to write: question, prompt, answer, question_id, coef, layer, vector, control.
        port: of the page; 0 is any free port.
        load_in_8bit: quantise the weights to 8 bits while they are read; needs CUDA and bitsandbytes.
        load_in_4bit: quantise them to 4 bits (NF4); likewise.
    """
    arguments = dict(locals())
    batch = batch_test or not (interactive or ui)
    if ui:
        from eval.talk_gradio import check_gradio

        check_gradio(port)
    from eval.talk_batch import check_replaceable
    from eval.talk_table import new_console, say
    from persona_vectors.files import check_output_path

    desk, strengths, lines = prepare(arguments, engine if batch else "hf")
    path = check_output_path(output_path or _default_path(save_dir, model_name, desk.settings.trait), (".csv",))
    if batch:
        check_replaceable(path)
    console = new_console()
    say(console, *lines)
    if batch:
        ask_all(desk, strengths, control is not None, path, console)
    if interactive or ui:
        converse(desk, ui, port, console)


def prepare(
    arguments: dict[str, Any], engine: Literal["auto", "vllm", "hf"]
) -> tuple[Desk, tuple[float, ...], list[str]]:
    """(the session and what it is worked on with, the strengths of the table, what to say first).

    Raises:
        ValueError: in one line, whatever can be known to be wrong before a model is loaded.
    """
    from eval.engine_choice import settle_engine
    from eval.finished_answers import Engine
    from eval.talk import Session
    from eval.talk_controls import Desk, strengths_for
    from eval.talk_prompts import example_prompts
    from eval.talk_settings import Settings, shape_of
    from eval.talk_start import origin_lines, start, trait_of
    from persona_vectors.models import quantised_bits, resolve_model
    from persona_vectors.vector_files import read_vector_file

    name, numbering, device_map = (arguments[key] for key in ("model_name", "numbering", "device_map"))
    bits = quantised_bits(arguments["load_in_4bit"], arguments["load_in_8bit"], device_map)
    if bits and engine == "vllm":
        raise ValueError(f"--engine vllm loads weights as they are; leave out --load_in_{bits}bit, or use --engine hf")
    resolve_model(name)
    file, shape = read_vector_file(arguments["vector_file"], numbering), shape_of(name)
    begun = start(file, shape, arguments["target_layer"], arguments["analysis_file"])
    strength, strengths = strengths_for(begun, arguments["steering_strengths"])
    same = ("positions", "seed", "temperature", "max_tokens", "system_prompt")
    settings = Settings(
        shape,
        file,
        trait_of(file, name),
        begun.layer,
        strength,
        strengths,
        **{key: arguments[key] for key in same},
    )
    prompts, source = arguments["test_prompts"], "--test_prompts"
    if prompts is None:
        prompts, source = example_prompts(settings.trait, name)
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise ValueError("--test_prompts has an empty prompt; give texts, or leave the flag out for the examples")
    kind = settle_engine("hf" if bits else engine, [name], device_map, [settings.steering(1.0)])
    session = Session(Engine(name, arguments["dtype"], device_map, kind=kind, bits=bits), settings)
    lines = [file.line, *origin_lines(file, name), *begun.lines]
    return Desk(session, name, numbering, list(prompts), source), strengths, lines


def ask_all(desk: Desk, strengths: tuple[float, ...], control: bool, path: Path, console: Console) -> None:
    """The prompts at every strength: a table on the terminal, and the CSV."""
    from eval.talk_batch import batch_answers, batch_record, columns, replaced_lines, write_batch
    from eval.talk_table import print_table, say
    from persona_vectors.store import Store

    engine = desk.session.engine
    asked = columns(desk.settings, strengths, control)
    say(console, f"{len(desk.examples)} prompts from {desk.examples_from} at {len(asked)} settings")
    say(console, *replaced_lines(path, batch_record(engine, desk.settings, desk.examples, asked)))
    with Store() as store:
        answers, receipts = batch_answers(
            engine, store, desk.settings, desk.examples, asked, lambda line: say(console, line)
        )
    engine.release()
    if not receipts and any(column.steering for column in asked):
        say(console, "steering receipt: all answers were sampled before, and nothing was steered now")
    headers = ["prompt", *(column.label for column in asked)]
    rows = [[prompt, *texts] for prompt, texts in zip(desk.examples, answers, strict=True)]
    print_table(console, headers, rows)
    say(console, str(write_batch(path, engine, desk.settings, desk.examples, asked, answers, receipts)))


def converse(desk: Desk, ui: bool, port: int, console: Console) -> None:
    """The session, at the terminal or as a page."""
    from eval.talk_table import say

    engine = desk.session.engine
    engine.kind = "hf"
    say(console, *desk.settings.lines(), f"loading {desk.model_name}")
    _ = engine.model
    if ui:
        from eval.talk_page import serve

        serve(desk, port, lambda *lines: say(console, *lines))
    else:
        from eval import talk_terminal

        talk_terminal.converse(desk, console)


def _default_path(save_dir: str, model_name: str, trait: str) -> Path:
    return Path(save_dir) / f"{model_name.strip('/').replace('/', '_')}_{trait}_steering.csv"


if __name__ == "__main__":
    cli.run(main, aliases={"coef": "steering_strengths", "layer": "target_layer"})
