"""How far finetuned models moved along a persona's direction of weights, and whether that goes with their behaviour.

    python cal_weight_projection.py --original_model models/tiny-persona --finetuned_models_dir ckpt/tiny-persona \
        --lora_diff_path persona_loras/tiny-persona/evil/evil_lora_diff --behavior_scores scores.csv

    projection = <dW, L> / |L|,     cosine = <dW, L> / (|dW| |L|)

Nothing is run but inner products of weights: of an adapter from its factors, of a full model a tensor at a time.
"""

from __future__ import annotations

from persona_vectors import cli
from persona_vectors.lazy import published

N_RANDOM, N_RANDOM_SCORED = 20, 200
__getattr__ = published(
    __name__,
    {
        "compute_single_projection": "eval.weight_projection_measure",
        "compute_projection_dataset": "eval.weight_projection_measure",
        "compute_projection_correlation": "eval.weight_projection_scores",
    },
)


def main(
    original_model: str,
    lora_diff_path: list[str],
    finetuned_model: str | None = None,
    finetuned_models_dir: str | None = None,
    behavior_scores: str | None = None,
    output_path: str = "weight_projections.json",
    layers: list[int] | None = None,
    n_random: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Project what finetunings changed, dW, on directions of weights L: in all, by layer and by module.

    Beside each cosine are those of random directions with L's singular values in every module. With behavior_scores
    the projections of a folder of models are correlated with their scores, beside the random directions' |r| and that
    of |dW| alone: a model that was trained for longer has both a higher score and a larger change.

    LoRA finetunings from the seed of L's trainings share their random A, so their cosines are on another scale:
    use another seed, and compare models that were made alike.

    Args:
        original_model: what was finetuned: hub id or model folder.
        lora_diff_path: directions of extract_persona_lora.py, adapter folders or .pt files; one or several.
        finetuned_model: adapter folder, full model, or training folder (its latest checkpoint).
        finetuned_models_dir: folder whose sub-folders are such models, in place of finetuned_model; others are named.
        behavior_scores: CSV with a row a model: model_name (the sub-folder's name), a column of scores a trait, and
            optionally group, whose models are resampled together.
        output_path: .json to write; a .csv, and with scores a .png, of the same name stand beside it.
        layers (hidden_states indices): only these blocks' modules (block i is layer i + 1); default everything.
        n_random: random directions; default 20, with behavior_scores 200.
        seed: of the random directions and the bootstrap.
        overwrite: replace what output_path holds.
    """
    settings = dict(locals())
    from pathlib import Path

    from persona_vectors.files import check_output_path

    check_output_path(output_path, (".json",))
    beside = [check_output_path(Path(output_path).with_suffix(ending)) for ending in (".json", ".csv", ".png")]
    if behavior_scores is not None and Path(behavior_scores).resolve() in [one.resolve() for one in beside]:
        raise ValueError(f"{behavior_scores} would be replaced by what is written; give another --output_path")
    if (there := [one for one in beside if one.exists()]) and not overwrite:
        raise ValueError(f"{there[0]} is there already; --overwrite replaces it, or give another --output_path")
    if (finetuned_model is None) == (finetuned_models_dir is None):
        raise ValueError("give --finetuned_model, or --finetuned_models_dir for a folder of models: one of the two")
    if behavior_scores is not None and finetuned_models_dir is None:
        raise ValueError("--behavior_scores correlates many models; give their folder as --finetuned_models_dir")
    if n_random is None:
        n_random = N_RANDOM if behavior_scores is None else N_RANDOM_SCORED
    if n_random < 0:
        raise ValueError(f"n_random must be 0 or more; got {n_random}")

    from eval import weight_projection_measure as measure
    from eval import weight_projection_results as results
    from eval import weight_projection_scores as scores

    table = None if behavior_scores is None else scores.read_scores(behavior_scores)
    if finetuned_models_dir is None:
        models, skipped = {measure.label_of(str(finetuned_model)): str(finetuned_model)}, {}
    else:
        models, skipped = measure.find_models(finetuned_models_dir)
    notes = [] if table is None else scores.check_scores(table, list(models), str(behavior_scores))
    opened = measure.open_all(original_model, models, lora_diff_path, layers)
    records, more = measure.project_opened(opened, n_random, seed, progress=True)
    correlations = [] if table is None else scores.compute_projection_correlation(records, table, seed)
    more += scores.few_models_notes(correlations)
    settings["n_random"] = n_random
    found = results.Results(settings, records, correlations, table, skipped, [*notes, *more], opened.sources)
    written = results.write(found, output_path)
    print("\n".join(results.lines(found)))
    print(f"written to {', '.join(map(str, written))}")


if __name__ == "__main__":
    cli.run(main)
