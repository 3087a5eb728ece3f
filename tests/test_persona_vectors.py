"""The assistant-axis library: its names, its config, and vectors that come out again from the tracked answers."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import persona_vectors
from persona_vectors import (
    PERSONAS,
    ActivationExtractor,
    PersonaVectorConfig,
    extract_persona_layers,
    extract_persona_vectors,
    generate_responses,
    load_persona_vectors,
    load_responses,
    model_slug,
)
from persona_vectors.persona_responses import OPENROUTER_URL, find_endpoint

ROOT = Path(persona_vectors.__file__).parent.parent
FIXTURES = ROOT / "data" / "test_fixtures"
LAYER = 3


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.cosine_similarity(a.double(), b.double(), dim=0))


def test_the_import_alone_loads_nothing():
    code = "import sys, persona_vectors as p; p.PersonaVectorConfig(); p.PERSONAS; p.model_slug('a/b')"
    heavy = "print([m for m in ('torch', 'transformers', 'numpy', 'openai', 'plotly') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", f"{code}; {heavy}"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("name", persona_vectors.__all__)
def test_every_name_is_there(name):
    assert getattr(persona_vectors, name) is not None
    assert name in dir(persona_vectors)


def test_an_unknown_name_says_so():
    with pytest.raises(AttributeError, match="'persona_vectors' has no attribute 'nope'"):
        persona_vectors.nope  # noqa: B018


def test_slug():
    assert model_slug("google/gemma-3-27b-it") == "gemma-3-27b-it"
    assert model_slug("models/tiny-persona/") == model_slug("./models/tiny-persona") == "tiny-persona"


@pytest.mark.parametrize("here", [".", "./", "../tiny-persona", "../../models/tiny-persona/."])
def test_slug_of_the_folder_one_stands_in(here, monkeypatch):
    monkeypatch.chdir(ROOT / "models/tiny-persona")
    assert model_slug(here) == "tiny-persona"


def test_the_hub_token_is_there_whenever_the_hub_is_asked(tiny_persona, monkeypatch):
    from persona_vectors import persona_extraction

    monkeypatch.delenv("HF_TOKEN", raising=False)
    seen = []

    def noted(function):
        def call(*args, **kwargs):
            seen.append(os.environ.get("HF_TOKEN"))
            return function(*args, **kwargs)

        return call

    for name in ("fingerprint", "load_config", "load_tokenizer"):
        monkeypatch.setattr(persona_extraction, name, noted(getattr(persona_extraction, name)))
    extractor = ActivationExtractor(PersonaVectorConfig(tiny_persona, hf_token="secret"))
    assert extractor.key() is not None and extractor.num_layers and extractor.tokenizer is not None
    assert seen == ["secret"] * 3 and "HF_TOKEN" not in os.environ


def test_published_fields_and_defaults():
    published = {
        "model_name": "google/gemma-3-27b-it",
        "openrouter_model": None,
        "layer_fraction": 0.65,
        "prompt_format": "chat",
        "max_tokens": 256,
        "temperature": 0.7,
        "max_concurrent_requests": 10,
        "hf_token": None,
        "openrouter_api_key": None,
    }
    assert dataclasses.asdict(PersonaVectorConfig()) == published


@pytest.mark.parametrize(("num_layers", "layer"), [(62, 40), (4, 3), (1, 1), (28, 18)])
def test_layer(num_layers, layer):
    assert PersonaVectorConfig().get_extraction_layer(num_layers) == layer


def test_the_answering_model_follows_a_name_set_later():
    config = PersonaVectorConfig(openrouter_model="different/model")
    assert (config.openrouter_model, config.answering_model) == ("different/model",) * 2
    config = PersonaVectorConfig()
    config.model_name = "allenai/Olmo-3-7B-Instruct"
    assert config.answering_model == "allenai/Olmo-3-7B-Instruct"


def test_keys_are_not_shown():
    assert "secret" not in repr(PersonaVectorConfig(hf_token="secret", openrouter_api_key="secret"))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("model_name", "", "model_name is empty"),
        ("prompt_format", "chatml", "must be chat or raw; got 'chatml'"),
        ("layer_fraction", 65, "between 0 .* and 1; got 65"),
        ("layer_fraction", float("nan"), "got nan"),
        ("temperature", -1, "temperature must be at least 0; got -1"),
        ("max_tokens", 0, "max_tokens must be a whole number of at least 1; got 0"),
        ("max_concurrent_requests", 2.5, "got 2.5"),
    ],
)
def test_bad_fields(field, value, said):
    with pytest.raises(ValueError, match=said):
        PersonaVectorConfig(**{field: value})
    config = PersonaVectorConfig(model_name="models/tiny-persona")
    setattr(config, field, value)
    with pytest.raises(ValueError, match=said):
        generate_responses({"default": ""}, ["How are you?"], config)


def test_whom_answers_are_asked_from(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(persona_vectors.config, "CHECKOUT", tmp_path)
    with pytest.raises(ValueError, match="answers of google/gemma-3-27b-it need OPENROUTER_API_KEY"):
        find_endpoint(PersonaVectorConfig())
    (tmp_path / ".env").write_text("OPENROUTER_API_KEY=from-file\n")
    assert dataclasses.astuple(find_endpoint(PersonaVectorConfig())) == (OPENROUTER_URL, "from-file")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://own/v1")
    assert dataclasses.astuple(find_endpoint(PersonaVectorConfig())) == ("http://own/v1", "")
    own = PersonaVectorConfig(openrouter_api_key="mine")
    assert dataclasses.astuple(find_endpoint(own)) == (OPENROUTER_URL, "mine")


@pytest.mark.usefixtures("no_model")
def test_sizes_are_known_without_the_model(tiny_persona):
    extractor = ActivationExtractor(PersonaVectorConfig(model_name=tiny_persona))
    assert (extractor.num_layers, extractor.d_model, extractor.get_extraction_layer()) == (4, 256, LAYER)
    assert extractor.tokenizer.chat_template
    with pytest.raises(AssertionError, match="a model was loaded"):
        _ = extractor.model


def test_the_stored_vectors_come_out_again(axis_extractor, axis_cast):
    responses = load_responses(FIXTURES / "responses_cache.json")
    stored = load_persona_vectors(FIXTURES / f"persona_vectors_layer{LAYER}.pt")
    found = extract_persona_vectors(axis_extractor, axis_cast.personas, axis_cast.questions, responses)
    assert list(stored) == list(found) == list(PERSONAS)
    assert min(cosine(found[name], stored[name]) for name in stored) > 0.99


@pytest.mark.parametrize("prompt_format", ["chat", "raw"])
def test_equal_to_a_plain_loop_over_single_samples(
    tiny_persona, axis_extractor, axis_cast, axis_responses, prompt_format
):
    config = PersonaVectorConfig(model_name=tiny_persona, prompt_format=prompt_format)
    same = ActivationExtractor(config, model=axis_extractor.model, tokenizer=axis_extractor.tokenizer)
    questions = axis_cast.questions[:2]
    found = extract_persona_vectors(same, axis_cast.personas, questions, axis_responses, LAYER)
    model, tokenizer = axis_extractor.model, axis_extractor.tokenizer
    for name, system in axis_cast.personas.items():
        means = []
        for question in questions:
            messages = [{"role": "system", "content": system}] if system else []
            messages.append({"role": "user", "content": question})
            answer = axis_responses[name, question]
            if prompt_format == "raw":
                prompt = (f"System: {system}\n\n" if system else "") + f"User: {question}\n\nAssistant:"
                answer = " " + answer
            else:
                prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            before = tokenizer(prompt, add_special_tokens=False).input_ids
            ids = torch.tensor([before + tokenizer(answer, add_special_tokens=False).input_ids])
            with torch.inference_mode():
                hidden = model(ids, output_hidden_states=True).hidden_states[LAYER]
            means.append(hidden[0, len(before) :].mean(0))
        assert cosine(found[name], torch.stack(means).mean(0)) > 0.9999, name


def test_one_layer_is_a_row_of_all(axis_extractor, axis_cast, axis_responses):
    personas = {name: axis_cast.personas[name] for name in ("default", "jester")}
    every = extract_persona_layers(axis_extractor, personas, axis_cast.questions, axis_responses)
    assert every["jester"].shape == (5, 256)
    for layer in (0, 2, 4):
        one = extract_persona_vectors(axis_extractor, personas, axis_cast.questions, axis_responses, layer)
        assert all(torch.allclose(every[name][layer], one[name], atol=1e-4) for name in personas)


def test_activations_are_in_the_order_given(axis_extractor, axis_cast, axis_responses):
    places = [("jester", axis_cast.questions[0]), ("ghost", axis_cast.questions[1]), ("bard", axis_cast.questions[2])]
    rows = [(axis_cast.personas[name], question, axis_responses[name, question]) for name, question in places]
    whole = axis_extractor.extract_activations(*map(list, zip(*rows, strict=True)), layer=2)
    assert whole.shape == (3, 256) and whole.dtype == torch.float32
    for row, one in enumerate(rows):
        alone = axis_extractor.extract_activations([one[0]], [one[1]], [one[2]], 2)[0]
        assert torch.allclose(whole[row], alone, atol=1e-4)


def test_what_is_missing_is_counted(axis_extractor, axis_cast, axis_responses):
    personas = {name: axis_cast.personas[name] for name in ("default", "jester", "bard")}
    lost = [("jester", question) for question in axis_cast.questions[:9]]
    some = {place: text for place, text in axis_responses.items() if place not in lost}
    some |= {("bard", axis_cast.questions[k]): " \n" for k in range(10)}
    with pytest.raises(ValueError, match=r"2 of 3 personas \(jester 9, bard 8 of 18\); expected at least 10"):
        extract_persona_vectors(axis_extractor, personas, axis_cast.questions, some)
    fewer = extract_persona_vectors(axis_extractor, personas, axis_cast.questions, some, min_answers=8)
    just = extract_persona_vectors(axis_extractor, personas, axis_cast.questions[9:], axis_responses)
    assert cosine(fewer["jester"], just["jester"]) > 0.99999
    with pytest.raises(ValueError, match=r"jester 1, bard 0 of 4\); expected at least 4"):
        extract_persona_vectors(axis_extractor, personas, axis_cast.questions[6:10], some)


def test_what_does_not_fit(axis_extractor):
    with pytest.raises(ValueError, match="got 1 system prompts, 2 questions and 1 responses"):
        axis_extractor.extract_activations([""], ["a", "b"], ["c"], 1)
    with pytest.raises(ValueError, match="tiny-persona"):
        axis_extractor.extract_activations([""], ["a"], ["c"], 5)
    with pytest.raises(ValueError, match="give both or neither"):
        ActivationExtractor(model=axis_extractor.model)
