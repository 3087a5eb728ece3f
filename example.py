"""The assistant axis of a model, from its personas' answers to three figures.

python example.py --model_name models/tiny-persona

What it does with the library, in short:

    from persona_vectors import *
    config = PersonaVectorConfig(model_name="models/tiny-persona")
    cast = load_personas(config.model_name)
    responses = generate_responses(cast.personas, cast.questions, config)
    vectors = extract_persona_vectors(ActivationExtractor(config), cast.personas, cast.questions, responses)
    plot_pca_projection(vectors, save_path="images/pca.html")
"""

from __future__ import annotations

from typing import Literal

from persona_vectors import cli


def main(
    model_name: str = "models/tiny-persona",
    openrouter_model: str | None = None,
    sample_locally: bool = False,
    personas_path: str | None = None,
    responses_path: str | None = None,
    prompt_format: Literal["chat", "raw"] = "chat",
    layer: int | None = None,
    layer_fraction: float = 0.65,
    max_tokens: int = 256,
    temperature: float = 0.7,
    max_concurrent_requests: int = 10,
    judge_model: str | None = None,
    min_answers: int | None = None,
    seed: int = 0,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device_map: str = "auto",
    data_dir: str = "data",
    images_dir: str = "images",
    vectors_dir: str = "persona_vectors",
    reread: bool = False,
    overwrite: bool = False,
) -> None:
    """Let 23 personas answer 18 questions, take each persona's mean activation, and find the axis to the assistant.

    The axis is mean(assistant personas) - mean(all others): it points from role-play to the assistant. Beside it stand
    what other labels, other roles and random directions give.

    Writes <data_dir>/responses/<model>.json, <data_dir>/persona_vectors/<model>.pt (persona -> vector at one layer) and
    <model>_assistant_axis.pt, <vectors_dir>/<model>/assistant_axis.pt (the axis at every layer, for --vector_path of
    the other commands), and <images_dir>/<model>_{cosine,pca,variance}.html. What is there already is used again, and
    no model is loaded for it; files of other settings stop the run, unless --reread (vectors) or --overwrite (answers
    and vectors) replaces them.

    Args:
        model_name: whose activations are read: hub id, model folder, or adapter folder.
        openrouter_model: what answers, by the API's name for it: OpenRouter, or the server at OPENAI_BASE_URL. Without
            it model_name answers; a model folder does so in this process.
        sample_locally: answer in this process although model_name is a hub id; needs no key.
        personas_path: JSON of personas and questions; default the model folder's own, else the library's.
        responses_path: answers to use as they are, whoever gave them, such as another model's, or edited ones.
        prompt_format: chat (the tokenizer's template) or raw (System:, User:, Assistant: as plain text).
        layer: hidden_states index, the output of block layer-1; default by layer_fraction.
        layer_fraction (0-1): depth, int(n_layers * layer_fraction + 0.5).
        max_tokens: most tokens of an answer.
        temperature: of the answers.
        max_concurrent_requests: calls in flight at once.
        judge_model: an OpenAI model, a served model, or a local folder; only answers that it says fully play their
            role count. Without one all do.
        min_answers: fewest answers of a persona; those with fewer are left out, and named. Default 10, or all
            questions where there are fewer.
        seed: of the random streams of answers.
        dtype: numbers the model computes in; auto is the checkpoint's own on CUDA and float32 on CPU.
        device_map: auto, cpu, or a device such as cuda:0.
        data_dir: folder for responses and vectors.
        images_dir: folder for the figures.
        vectors_dir: folder for the axis file.
        reread: make the vectors anew from the answers there are, as for another layer.
        overwrite: make everything anew: every answer is asked for again.
    """
    arguments = dict(locals())  # exactly the arguments, before anything else has a name
    from eval.axis_report import draw, lines
    from eval.axis_run import Asked, AxisRun
    from persona_vectors.axis_statistics import axis_evidence
    from persona_vectors.personas import ASSISTANT_PERSONAS

    run = AxisRun(Asked(**arguments))
    print(f"{len(run.cast.personas)} personas and {len(run.cast.questions)} questions: {run.cast.source}")
    responses, whence = run.responses()
    print(f"{len(responses)} answers: {whence}")
    read = run.read(responses)
    evidence = axis_evidence(read.vectors, ASSISTANT_PERSONAS)
    print("\n".join(lines(run, read, evidence)))
    paths = [run.write_axis(read, evidence), *draw(run, read)]
    print("saved " + ", ".join(str(path) for path in [run.vectors_path, *paths]))


if __name__ == "__main__":
    cli.run(main)
