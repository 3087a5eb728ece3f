"""Steer by a vector or by weights: both on the same questions, with the same random numbers.

    python compare_steering_methods.py --model models/tiny-persona --trait evil --judge_model models/tiny-judge \
        --activation_vector_path persona_vectors/tiny-persona/evil_response_avg_diff.pt --layer 3 \
        --lora_diff_path persona_loras/tiny-persona/evil/evil_lora_diff --test_latency --analyze_spaces --capability
"""

from __future__ import annotations

from typing import Literal

from eval.questions import DEFAULT_JUDGE
from persona_vectors import cli
from persona_vectors.lazy import published

__getattr__ = published(
    __name__,
    {
        "compare_behavior_vs_coefficient": "eval.compare_behavior",
        "measure_latency": "eval.compare_latency",
        "analyze_space_relationship": "eval.compare_spaces",
    },
)


def main(
    model: str,
    trait: str,
    activation_vector_path: str,
    lora_diff_path: str,
    coefficients: list[float] = [0.0, 0.5, 1.0, 1.5, 2.0],  # noqa: B006 (read only; cli shows it)
    lora_coefficients: list[float] | None = None,
    layer: int = 16,
    output_dir: str = "comparison_results",
    n_per_question: int = 10,
    test_latency: bool = False,
    analyze_spaces: bool = False,
    capability: bool = False,
    judge_model: str = DEFAULT_JUDGE,
    max_tokens: int = 1000,
    n_random: int = 2,
    min_coherence: float = 75.0,
    seed: int = 0,
    overwrite: bool = False,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device_map: str = "auto",
    engine: Literal["auto", "vllm", "hf"] = "auto",
) -> None:
    """Compare steering by a vector (coef * v added at a layer) with steering by weights (W + coef * D).

    Both are run over their coefficients on the trait's eval questions, each sample with the same random numbers in
    every setting, beside random vectors of v's norm and random directions of D's singular values. What is found: trait
    and coherence over the coefficient, the highest trait of each method at the coherence asked for and their paired
    difference, and how far the two methods move the same answers. The units of the two coefficients have nothing to
    do with each other; compare methods at equal coherence or equal trait, not at equal coefficients.

    Answers and scores come from the store, so the same command again goes on where it was interrupted.

    Args:
        model: chat model: hub id, model folder, adapter folder, or training folder (its latest checkpoint).
        trait: name of a trait (evil, sycophantic, ...) or path of a trait JSON file.
        activation_vector_path: vectors .pt of generate_vec.py; added to the response's tokens.
        lora_diff_path: adapter folder or .pt file of extract_persona_lora.py.
        coefficients: of the vector; 0 is the unsteered run, which is made in any case.
        lora_coefficients: of the weights' direction; default those of the vector.
        layer: hidden_states index at which the vector is added, 1 to the number of layers.
        output_dir: folder for activation_coef_X.csv, lora_coef_X.csv, comparison_results.csv, comparison_plot.png,
            report.html, and what the flags below add.
        n_per_question: samples of each question under each setting; 1 samples at temperature 0, otherwise 1.
        test_latency: time both against the unsteered model, in interleaved rounds -> latency_comparison.csv.
        analyze_spaces: what the weights' direction does to the activations, against the vector at every layer ->
            space_analysis.json and .png.
        capability: the closed-form facts of models/tiny-persona, unsteered and steered -> capability.csv.
        judge_model: an OpenAI model, a served model, or a local folder or hub id scored in process.
        max_tokens: most tokens of an answer.
        n_random: random vectors and random directions beside the two.
        min_coherence (0-100): the highest trait is looked for among settings with this mean coherence or more.
        seed: seeds every row's own random stream, the random vectors and directions, and the bootstrap.
        overwrite: start again: sample and judge anew, and replace what output_dir holds of another comparison.
        dtype: numbers the model computes in; auto is the checkpoint's own on CUDA and float32 on CPU.
        device_map: auto, cpu, or a device such as cuda:0.
        engine: what samples the answers: vllm, hf (Hugging Face), or auto: vLLM where it is installed and can do all of
            this. Times, activations (analyze_spaces) and capability are Hugging Face's in any case.
    """
    arguments = dict(locals())  # exactly the arguments, before anything else has a name
    from eval.compare_settings import Asked, check
    from eval.compare_steps import compare, unfinished

    comparison = compare(check(Asked(**arguments)))
    print("\n".join(comparison.lines()))
    if why := unfinished(comparison):
        raise cli.Unfinished(why)


if __name__ == "__main__":
    cli.run(main)
