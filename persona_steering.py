"""Talk to a chat model while a vector steers it, or ask it prompts at several strengths side by side.

    python persona_steering.py --model_name models/tiny-persona --interactive \
        --vector_file persona_vectors/tiny-persona/extraversion_response_avg_diff.pt

Vectors may be the .npz of quick_persona_extract.py, the .pt of generate_vec.py, or safetensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

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
) -> None:
    """Ask a model prompts at several strengths of a vector, or talk to it while the vector steers it.

    Without --interactive or --ui the prompts are asked at every strength, as one job, and the answers stand side by
    side in a table and in a CSV. `strength * vector` is added at the layer; the vector keeps its length. What is really
    added is measured before the first steered answer (a steering receipt).

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
    """
    from persona_vectors.vllm_available import choose_engine

    batch = batch_test or not (interactive or ui)
    kind = choose_engine(engine) if batch else "hf"
    from eval.talk_settings import Settings, shape_of
    from eval.talk_start import origin_lines, start, trait_of
    from persona_vectors.models import resolve_model
    from persona_vectors.vector_files import read_vector_file

    if ui:
        from eval.talk_page import check_gradio

        check_gradio(port)
    resolve_model(model_name)
    file = read_vector_file(vector_file, numbering)
    shape = shape_of(model_name)
    begun = start(file, shape, target_layer, analysis_file)
    from eval.talk_controls import Desk, strengths_for

    strength, strengths = strengths_for(begun, steering_strengths)
    settings = Settings(
        shape,
        file,
        trait_of(file, model_name),
        begun.layer,
        strength,
        strengths,
        positions=positions,
        seed=seed,
        temperature=temperature,
        max_tokens=max_tokens,
        system_prompt=system_prompt,
    )
    from eval.finished_answers import Engine
    from eval.talk import Session
    from eval.talk_prompts import example_prompts
    from eval.talk_table import new_console, say
    from persona_vectors.files import check_output_path

    prompts, source = (test_prompts, "--test_prompts") if test_prompts else example_prompts(settings.trait, model_name)
    path = check_output_path(output_path or _default_path(save_dir, model_name, settings.trait), (".csv",))
    console = new_console()
    say(console, file.line, *origin_lines(file, model_name), *begun.lines)
    session = Session(Engine(model_name, dtype, device_map, kind=kind), settings)
    desk = Desk(session, model_name, numbering, list(prompts), source)
    if batch:
        ask_all(desk, strengths, control is not None, path, console)
    if interactive or ui:
        converse(desk, ui, port, console)


def ask_all(desk: Desk, strengths: tuple[float, ...], control: bool, path: Path, console: Console) -> None:
    """The prompts at every strength: a table on the terminal, and the CSV."""
    from eval.talk_batch import batch_answers, columns, write_batch
    from eval.talk_table import print_table, say
    from persona_vectors.store import Store

    engine = desk.session.engine
    asked = columns(desk.settings, strengths, control)
    say(console, f"{len(desk.examples)} prompts from {desk.examples_from} at {len(asked)} settings")
    with Store() as store:
        answers, receipts = batch_answers(
            engine, store, desk.settings, desk.examples, asked, lambda line: say(console, line)
        )
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
    engine.release()
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
    cli.run(main)
