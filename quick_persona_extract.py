"""Does a model carry a persona direction? A few answers, a vector a layer, and how well it separates, in a minute.

python quick_persona_extract.py --model_name models/tiny-persona --trait openness --layers 1 2 3 --n_samples 5
"""

from __future__ import annotations

from typing import Literal

from persona_vectors import cli

Method = Literal["all", "mean_diff", "mean_centred", "pca", "probe", "lda"]


def main(
    model_name: str,
    trait: str | list[str],
    layers: list[int] | None = None,
    layer_range: list[int] | None = None,
    n_samples: int = 5,
    save_dir: str = "persona_analysis",
    judge_model: str | None = None,
    threshold: float = 50,
    methods: list[Method] | None = None,
    compare_steering: bool = False,
    steer_layer: int | None = None,
    calibrate: bool = False,
    coefs: list[float] = [0.5, 1, 1.5, 2],  # noqa: B006 (read only; cli shows it)
    max_tokens: int = 200,
    seed: int = 0,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device_map: str = "auto",
    engine: Literal["auto", "vllm", "hf"] = "auto",
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
) -> None:
    """Extract a trait's vector at each layer from a few answers, and say how well it separates held-out ones.

    Each of `n_samples` questions is answered under every pair of the trait's instructions, once with the trait (pos,
    "high") and once against it (neg, "low"). The vector is the difference of the mean activations of both sides over
    the answers' tokens. AUC and separation are of questions that did not make the direction; beside them stand random
    directions, labels that mean nothing, and the in-sample AUC, which is circular. Bands are applied to the held-out
    AUC: excellent above 0.8, good above 0.7, moderate above 0.6, poor below; one counts where the AUC's whole interval
    lies above the 95th percentile of random directions.

    Writes <save_dir>/<model with / as _>_<trait>_vectors.npz (layer_<L>_vector, layer_<L>_vector_norm), _vectors.json
    (how they were made), _analysis.json (per layer; auc is the held-out one), _analysis.png, _analysis.html and
    _answers.csv; with --methods _methods.csv and the vectors of each, with --compare_steering _methods_steering.csv and
    _methods_steering_answers.csv. Answers and scores come from the store, so the same command again samples nothing,
    and leaves a calibration of the same vectors in place.

    Args:
        model_name: chat model: hub id, model folder, adapter folder, or training folder (its latest checkpoint).
        trait: one or several of openness, conscientiousness, extraversion, agreeableness, neuroticism,
            machiavellianism, narcissism, psychopathy, any other trait that ships, or paths of trait JSON files.
        layers: hidden_states indices; layer L is the output of block L-1, 0 the embeddings.
        layer_range: first and last layer, both read; what the model does not have is left out. Without --layers and
            --layer_range 10 to 20, or all layers where the model has fewer.
        n_samples: questions, at least 2, so that some can be held out; the first of the trait's file. More than it has
            asks each several times.
        save_dir: folder for the files.
        judge_model: an OpenAI model, a served model, or a local folder; keeps the pairs that show the trait. Without
            one every answer counts.
        threshold (0-100): a pair is kept if pos scores at least this and neg less than 100 minus this, both coherent.
        methods: also compare ways to make a direction: mean_diff, mean_centred (pos against the mean of everything,
            other traits included), pca (of the pairs' differences), probe (logistic regression), lda (whitened).
        compare_steering: steer by each method's direction at one layer, beside random directions; needs a judge.
        steer_layer: that layer; default the best one here, which need not be the one that steers best.
        calibrate: also find the coefficients that keep answers coherent at each layer, as python -m eval.calibrate does
            (judged, or by token KL without a judge), and write them into the vectors' sidecar.
        coefs: coefficients of --compare_steering, in units of the difference of means at that layer.
        max_tokens: most tokens of an answer.
        seed: of the random streams of answers, folds, random directions and resampling.
        dtype: numbers the model computes in; auto is the checkpoint's own on CUDA and float32 on CPU.
        device_map: auto, cpu, or a device such as cuda:0.
        engine: what samples: vllm, hf (Hugging Face), or auto: vLLM where it is installed.
        load_in_8bit: quantise the weights to 8 bits while they are read; needs CUDA and bitsandbytes.
        load_in_4bit: quantise them to 4 bits (NF4); likewise.
    """
    arguments = dict(locals())  # exactly the arguments, before anything else has a name
    from eval.quick_extract import Asked
    from eval.quick_run import run

    run(Asked(**arguments))


if __name__ == "__main__":
    cli.run(main)
