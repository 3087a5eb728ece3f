"""Personality by questionnaire: a trait's vectors from TRAIT items, and what a model answers, steered or not.

    python persona_vector_analysis.py --model_name models/tiny-persona --persona_trait openness \
        --layer_start 1 --layer_end 4 --scoring letter open --profile --persona_instruction_type pos
"""

from __future__ import annotations

from typing import Literal

from persona_vectors import cli


def main(
    model_name: str,
    persona_trait: str,
    layer_start: int | None = None,
    layer_end: int | None = None,
    max_samples: int | None = None,
    prompt_type: int = 1,
    save_dir: str = "persona_analysis_results",
    data_file: str | None = None,
    scoring: list[Literal["letter", "text", "open"]] = ["letter"],  # noqa: B006 (read only; cli shows it)
    profile: bool = False,
    persona_instruction_type: list[Literal["pos", "neg"]] | None = None,
    vector_file: str | None = None,
    layer: int | None = None,
    coef: list[float] | None = None,
    steering_type: Literal["response", "prompt", "all"] = "response",
    n_random: int = 4,
    seed: int = 0,
    overwrite: bool = False,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device_map: str = "auto",
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
) -> None:
    """Make a trait's vectors from a questionnaire's responses, and score the model on its items.

    Vectors are mean activations of the high responses less those of the low ones, each read as the answer to its
    question; how well each layer parts them is told on items that did not make the direction. The score of a trait is
    P(high): what its two high options get of the probability of all four, 0.5 being chance. Scored by letter or text,
    every item is asked in four orders, so that the pull of a place cancels; open shows no options. Likelihoods go by
    way of the store: the same command again goes on where it was interrupted.

    Writes persona_vectors_<trait>.npz, analysis_results_<trait>.json, persona_vector_analysis_<trait>.png and .html,
    trait_scores_<trait>.csv and _items.csv; with --profile personality_profile.csv, _items.csv, .png and .html instead
    of the trait's own scores.

    Args:
        model_name: hub id, model folder, adapter folder, or training folder (its latest checkpoint).
        persona_trait: openness, conscientiousness, extraversion, agreeableness, neuroticism, machiavellianism,
            narcissism, psychopathy, or another that the data file asks about.
        layer_start: first layer (hidden_states index) to make vectors at; default 10, or 1 in a smaller model.
        layer_end: last layer, itself included; default 20, or the model's last.
        max_samples: items of each trait, the first of the file; default all.
        prompt_type: which wording puts the items, from 1; ours has 1 to 3, a file may bring its own.
        save_dir: folder for the files.
        data_file: JSON, JSONL or CSV of TRAIT items, or mirlab/TRAIT (gated: HF_TOKEN); default the questionnaire that
            the model's folder ships, otherwise one of our own writing.
        scoring: letter (options listed, the probability of A to D), text (options listed, the likelihood of an option's
            words), open (the question alone, the likelihood of an option's words); one or several.
        profile: score all traits of the questionnaire and draw them as a radar.
        persona_instruction_type: also ask under system prompts with the trait's pos or neg instructions, or both.
        vector_file: .npz, .pt or .safetensors of vectors by layer; also ask while it steers, beside random directions.
        layer: where the vector is added; default the calibrated one, the best of its analysis, or the file's middle.
        coef: coefficients of the vector; default the calibrated one, otherwise 1.
        steering_type: which tokens are steered: response (the last prompt token and the answer's), prompt, or all.
        n_random: random directions of the vector's norm at every coefficient.
        seed: of the options' order, the random directions, folds, permutations and the bootstrap.
        overwrite: ask anew what the store has.
        dtype: numbers the model computes in; auto is the checkpoint's own on CUDA and float32 on CPU.
        device_map: auto, cpu, or a device such as cuda:0.
        load_in_8bit: quantised weights; needs CUDA and bitsandbytes.
        load_in_4bit: the same with 4 bits.
    """
    arguments = dict(locals())  # exactly the arguments, before anything else has a name
    arguments["persona_instruction_type"] = persona_instruction_type or []
    from eval.trait_analysis import Asked, make_vectors, plan, receipts, score_all
    from eval.trait_vectors import lines

    work = plan(Asked(**arguments))
    print("\n".join([work.line(), *work.notes]), flush=True)
    vectors, files = make_vectors(work)
    print("\n".join(lines(vectors)), flush=True)
    taken = receipts(work)
    print("\n".join(one["line"] for one in taken if not one["control"]), flush=True)
    profiles, more = score_all(work, taken)
    print("\n\n".join("\n".join(one.lines()) for one in profiles))
    print("saved " + ", ".join(map(str, files + more)))


if __name__ == "__main__":
    cli.run(main)
