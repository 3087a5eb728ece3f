"""Persona vectors: find, prove, monitor and steer character traits of chat models.

The names below are the assistant-axis library (arXiv 2601.10387). Each is imported when it is first used, so that
`import persona_vectors` costs nothing.

    from persona_vectors import ActivationExtractor, PersonaVectorConfig, extract_persona_vectors, generate_responses
    from persona_vectors import load_personas

    config = PersonaVectorConfig(model_name="models/tiny-persona")
    cast = load_personas(config.model_name)  # its own; PERSONAS and EVAL_QUESTIONS for a model that ships none
    responses = generate_responses(cast.personas, cast.questions, config)
    vectors = extract_persona_vectors(ActivationExtractor(config), cast.personas, cast.questions, responses)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from persona_vectors.lazy import published

if TYPE_CHECKING:
    from persona_vectors.axis import compute_axes
    from persona_vectors.axis_plots import (
        plot_cosine_cross_similarity,
        plot_cosine_similarity_heatmap,
        plot_pca_comparison,
        plot_pca_comparison_nway,
        plot_pca_projection,
        plot_pca_variance_explained,
    )
    from persona_vectors.config import PersonaVectorConfig
    from persona_vectors.drift import project_transcript
    from persona_vectors.persona_extraction import (
        ActivationExtractor,
        extract_persona_layers,
        extract_persona_vectors,
    )
    from persona_vectors.persona_files import (
        load_persona_vectors,
        load_responses,
        model_slug,
        save_persona_vectors,
        save_responses,
    )
    from persona_vectors.persona_responses import ResponsesError, generate_responses
    from persona_vectors.personas import ASSISTANT_PERSONAS, EVAL_QUESTIONS, GROUPS, PERSONAS, load_personas

__all__ = [
    "ASSISTANT_PERSONAS",
    "EVAL_QUESTIONS",
    "GROUPS",
    "PERSONAS",
    "ActivationExtractor",
    "PersonaVectorConfig",
    "ResponsesError",
    "compute_axes",
    "extract_persona_layers",
    "extract_persona_vectors",
    "generate_responses",
    "load_persona_vectors",
    "load_personas",
    "load_responses",
    "model_slug",
    "plot_cosine_cross_similarity",
    "plot_cosine_similarity_heatmap",
    "plot_pca_comparison",
    "plot_pca_comparison_nway",
    "plot_pca_projection",
    "plot_pca_variance_explained",
    "project_transcript",
    "save_persona_vectors",
    "save_responses",
]

_MODULES = {
    "axis": ("compute_axes",),
    "axis_plots": (
        "plot_cosine_cross_similarity",
        "plot_cosine_similarity_heatmap",
        "plot_pca_comparison",
        "plot_pca_comparison_nway",
        "plot_pca_projection",
        "plot_pca_variance_explained",
    ),
    "config": ("PersonaVectorConfig",),
    "drift": ("project_transcript",),
    "persona_extraction": ("ActivationExtractor", "extract_persona_layers", "extract_persona_vectors"),
    "persona_files": (
        "load_persona_vectors",
        "load_responses",
        "model_slug",
        "save_persona_vectors",
        "save_responses",
    ),
    "persona_responses": ("ResponsesError", "generate_responses"),
    "personas": ("ASSISTANT_PERSONAS", "EVAL_QUESTIONS", "GROUPS", "PERSONAS", "load_personas"),
}

__getattr__ = published(
    __name__, {name: f"persona_vectors.{module}" for module, names in _MODULES.items() for name in names}
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
