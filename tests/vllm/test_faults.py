"""What goes wrong stays with the request that it goes wrong for: it is refused, or waits, and is never mis-steered."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

pytest.importorskip("vllm")

from peft import LoraConfig, get_peft_model

from persona_vectors.models import load_model
from persona_vectors.vllm_spec import Step
from persona_vectors.vllm_steering import Lora, Request, SteeredLLM
from tests.tiny_models import tiny_model, word_tokenizer
from tests.vllm.trial import answers, engine, prompt_ids, wrong

N_MANY = 3000
QUESTIONS = ("Name a good book.", "How do I bake bread?", "What is a fair price?", "Where should we go?")


def many_requests(model: str) -> list[Request]:
    """Requests that are each steered as no other is, with up to three rows each."""
    prompts = [prompt_ids(model, question) for question in QUESTIONS]
    requests = []
    for k in range(N_MANY):
        coef = 0.5 + k / N_MANY
        specs = [
            (Step("a", 2, coef, "all"),),
            (Step("b", 3, -coef, "response"),),
            (Step("a", 1, coef, "prompt"), Step("b", 3, 1.0 + coef, "response")),
            (Step("a", 4, 2.0, "response", "cap", floor=coef * 20), Step("b", 1, coef, "prompt")),
        ]
        requests.append(Request(prompts[k // 4 % 4], specs[k % 4]))
    return requests


def test_thousands_of_distinct_requests_wait_for_their_rows(compiled, tiny_persona, persona):
    """The tables have a place for 192 things to do, and these are over 5,000."""
    requests = many_requests(tiny_persona)
    assert len({request.spec for request in requests}) == N_MANY
    found = answers(compiled, requests, 6)
    assert all(found)
    chosen = range(0, N_MANY, 37)
    expected = [persona.answer(requests[k], 6) for k in chosen]
    assert len(chosen) > 60
    assert not wrong([found[k] for k in chosen], expected, [requests[k] for k in chosen])
    plain = {tuple(ids): persona.answer(Request(ids), 6) for ids in {tuple(one.ids) for one in requests}}
    steered = sum(found[k] != plain[tuple(requests[k].ids)] for k in chosen)
    print(f"steering changes {steered} of {len(chosen)} answers")
    assert steered > len(chosen) // 2
    answers(compiled, requests[:1], 1)  # rows are given back with the step after
    assert compiled.rpc("steering_state")["rows_used"] <= 3


def unknown_vector(llm: SteeredLLM, ids: list[int]) -> None:
    next(llm.stream([Request(ids), Request(ids, (Step("evil", 2),))], max_tokens=2))


def layer_out_of_range(llm: SteeredLLM, ids: list[int]) -> None:
    next(llm.stream([Request(ids), Request(ids, (Step("a", 5),))], max_tokens=2))


def register(vector: Tensor) -> Callable[[SteeredLLM, list[int]], None]:
    return lambda llm, _: llm.register(vector, "new") and None


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (unknown_vector, "'evil', which is not loaded; loaded are: a, b"),
        (layer_out_of_range, "layers 1 to 4"),
        (register(torch.full((5, 256), float("nan"))), "vector new has NaN or infinite numbers"),
        (register(torch.ones(5, 255)), r"vector new has shape \(5, 255\)"),
        (lambda llm, _: next(llm.stream([Request([])], max_tokens=2)), "a prompt is empty"),
    ],
)
def test_what_cannot_be_done_is_refused_and_the_engine_goes_on(compiled, persona, fault, said):
    with pytest.raises(ValueError, match=said) as refused:
        fault(compiled, persona.requests[0].ids)
    assert "\n" not in str(refused.value)
    assert not wrong(answers(compiled, persona.requests[:8]), persona.answers[:8], persona.requests[:8])


def test_answers_that_nobody_waits_for_are_given_up(compiled, persona):
    stream = compiled.stream(persona.requests, max_tokens=200)
    next(stream)
    stream.close()
    assert not wrong(answers(compiled, persona.requests), persona.answers, persona.requests)


def trained(model_folder: str, folder: str, **config) -> str:
    """A random PEFT adapter as others train them."""
    model = load_model(model_folder)[0]
    model.name_or_path = model_folder
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, **config))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"target_modules": ["q_proj", "lm_head"]}, "no LoRA in this model at lm_head, which"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, r"at model\.embed_tokens, which"),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [3, 4]}, "trainable_tokens_delta, which"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, "modules_to_save: .'embed_tokens'."),
        ({"target_modules": ["q_proj"], "use_dora": True}, "DoRA"),
        ({"target_modules": ["q_proj"], "lora_bias": True}, "bias"),
        ({"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 16}}, "rank 16 is greater than"),
    ],
)
def test_adapters_that_vllm_cannot_compute_are_refused(compiled, tiny_persona, persona, tmp_path, config, said):
    lora = Lora("trained", trained(tiny_persona, str(tmp_path / "trained"), **config))
    ids = persona.requests[0].ids
    with pytest.raises(ValueError, match=said) as refused:
        next(compiled.stream([Request(ids), Request(ids, lora=lora)], max_tokens=2))
    assert str(refused.value).endswith("use Hugging Face (--engine hf)")
    assert not wrong(answers(compiled, persona.requests[:8]), persona.answers[:8], persona.requests[:8])


@pytest.mark.filterwarnings("ignore")
def test_where_the_model_has_lora_at_its_head_it_is_served(tmp_path):
    size = {"hidden_size": 128, "num_attention_heads": 4, "head_dim": 32, "max_position_embeddings": 128}
    model = tiny_model("llama", **size, initializer_range=0.1)
    model.save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    targets = ["q_proj", "lm_head", "embed_tokens"]
    folder = trained(str(tmp_path / "model"), str(tmp_path / "adapter"), target_modules=targets)
    ids = [7, 9, 20, 33, 40]
    with torch.inference_mode():
        expected = load_model(folder)[0](torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        llm = SteeredLLM(folder, max_lora_rank=8, max_model_len=64, max_num_seqs=2, enforce_eager=True)
    with llm:
        found = llm.next_logprobs(Request(ids))
    assert max(abs(float(expected[token]) - odds) for token, odds in found.items()) < 1e-4


def test_a_request_that_overflows_has_no_answer_and_leaves_others_theirs(tiny_persona, persona):
    """In float16, with so few blocks that the next requests get those of the ones that became NaN."""
    prompts = [prompt_ids(tiny_persona, question) for question in QUESTIONS]
    plain = [Request(ids) for ids in prompts]
    few = {"dtype": "float16", "enforce_eager": True, "max_model_len": 128, "num_gpu_blocks_override": 12}
    with engine(tiny_persona, persona, max_num_seqs=4, **few) as llm:
        before = answers(llm, plain)
        for positions in ("all", "prompt", "response"):
            spec = (Step("a", 2, 1e5, positions),)
            for request in [Request(ids, spec) for ids in prompts]:
                with pytest.raises(ValueError, match="NaN or infinite, so it has no answer"):
                    answers(llm, [*plain[:1], request])
            with pytest.raises(ValueError, match="NaN"):
                llm.receipt(prompts[0], spec)
            assert answers(llm, plain) == before
