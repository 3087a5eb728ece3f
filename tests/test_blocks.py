"""Finding a model's blocks, checking layers, reading and replacing block outputs."""

from collections import namedtuple

import pytest
import torch
from torch import nn

from persona_vectors.blocks import (
    block_index,
    check_layer,
    decoder_blocks,
    device_of,
    hidden_of,
    hidden_size,
    inner_decoder,
    model_label,
    num_layers,
    read_blocks,
    unwrap,
    with_hidden,
)
from tests.tiny_models import ARCHITECTURES, D_MODEL, N_LAYERS, tiny_model, word_tokenizer


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_blocks_are_found_and_read_as_the_library_reports_them(architecture):
    model = tiny_model(architecture)
    assert num_layers(model) == N_LAYERS and hidden_size(model) == D_MODEL
    ids = torch.tensor([[7, 8, 9]])
    with read_blocks(model) as hidden:
        model(input_ids=ids)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in decoder_blocks(model))
    output = model(input_ids=ids, output_hidden_states=True)  # leaves the library's own hooks behind
    assert sorted(hidden) == list(range(N_LAYERS + 1))
    for layer in range(N_LAYERS):  # the library's last row is after the final norm
        assert torch.equal(hidden[layer], output.hidden_states[layer])
    assert inner_decoder(model) is inner_decoder(inner_decoder(model))


def test_wrappers_in_any_nesting_are_opened():
    from peft import LoraConfig, get_peft_model

    base = tiny_model("qwen2")
    blocks = decoder_blocks(base)
    peft_model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    for wrapped in (
        peft_model,
        torch.compile(peft_model, backend="eager"),
        nn.DataParallel(peft_model),
        torch.compile(nn.DataParallel(base), backend="eager"),
    ):
        assert decoder_blocks(wrapped) is blocks
        assert unwrap(wrapped) is base
        assert hidden_size(wrapped) == D_MODEL and device_of(wrapped) == torch.device("cpu")


def test_the_text_blocks_of_a_multimodal_model():
    from transformers import AutoConfig, AutoModelForImageTextToText

    text = tiny_model("gemma3_text").config.to_dict()
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = AutoModelForImageTextToText.from_config(config)
    assert num_layers(model) == N_LAYERS and hidden_size(model) == D_MODEL
    assert type(inner_decoder(model)).__name__ == "Gemma3TextModel"


def test_a_model_without_blocks_is_named_with_what_was_looked_for():
    with pytest.raises(ValueError, match="no decoder blocks in Linear: looked for a ModuleList named layers, h"):
        decoder_blocks(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="Linear has no config.hidden_size"):
        hidden_size(nn.Linear(2, 2))


def test_labels():
    model = tiny_model("gpt2")
    assert model_label(model) == "GPT2LMHeadModel"
    model.config._name_or_path = "some/folder/tiny/"
    assert model_label(model) == "tiny"


def test_layers_are_hidden_state_indices():
    assert block_index(1) == 0 and block_index(20) == 19
    with pytest.raises(ValueError, match="layer 0 is not the output of a block"):
        block_index(0)
    assert check_layer(28, 28) == 28 and check_layer(0, 28, steering=False) == 0


@pytest.mark.parametrize(
    ("layer", "steering", "message"),
    [
        (0, True, "layer 0 is the embedding output; steering needs 1..28 for X"),
        (29, True, "layer 29 does not exist; steering needs 1..28 for X"),
        (-1, False, "layer -1 does not exist; reading needs 0..28 for X"),
        (1.5, True, "layer 1.5 is not a whole number; steering needs 1..28 for X"),
        (True, True, "layer True is not a whole number; steering needs 1..28 for X"),
    ],
)
def test_layers_that_do_not_exist_are_refused(layer, steering, message):
    with pytest.raises(ValueError) as error:
        check_layer(layer, 28, "X", steering=steering)
    assert str(error.value) == message


def test_reading_a_layer_that_does_not_exist_leaves_no_hook():
    model = tiny_model()
    with pytest.raises(ValueError, match="layer 4 does not exist; reading needs 0..3"), read_blocks(model, [1, 4]):
        pass
    with pytest.raises(KeyError), read_blocks(model, [0, 1]):
        raise KeyError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_outputs_keep_their_type_and_are_not_changed():
    hidden, other = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    Output = namedtuple("Output", "hidden cache")
    for output in (hidden, (hidden, "cache"), [hidden, "cache"], Output(hidden, "cache")):
        replaced = with_hidden(output, other)
        assert type(replaced) is type(output)
        assert hidden_of(replaced) is other and hidden_of(output) is hidden
        if not isinstance(output, torch.Tensor):
            assert replaced[1] == "cache"
    with pytest.raises(TypeError, match="a decoder block returned dict"):
        hidden_of({"hidden": hidden})
    with pytest.raises(TypeError, match="a decoder block returned tuple"):
        hidden_of(())


def test_tiny_models_are_the_same_for_the_same_seed_and_leave_the_random_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, same, other = tiny_model(), tiny_model(), tiny_model(seed=1)
    assert torch.equal(torch.rand(1), expected)
    weights = [model.get_input_embeddings().weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_the_word_tokenizer_gives_back_what_it_was_given():
    tokenizer = word_tokenizer()
    messages = [{"role": "user", "content": "tell me about the cat."}, {"role": "assistant", "content": "i like it"}]
    text = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\ntell me about the cat.<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text and len(tokenizer) <= 64
