"""The vectors an engine holds, and every request it refuses before it is sampled."""

import pytest
import torch

from persona_vectors.vllm_catalog import Catalog, content_name
from persona_vectors.vllm_spec import Step


def catalog(layers=(1, 2, 3), projections=1):
    return Catalog("tiny", n_layers=3, d_model=4, layers=layers, projections=projections)


def vectors(seed=0, shape=(4, 4)):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_vector_is_known_by_its_content_whatever_it_is_called():
    held = catalog()
    own = held.add(vectors(), "evil")
    assert held.add(vectors(), "wicked") == own == held.add(vectors()) == content_name(vectors())
    assert held.add(vectors(1), "kind") != own
    assert content_name(vectors().flatten()) != own and content_name(vectors().bfloat16()) != own
    assert len(held.vectors) == 2 and held.names == {"evil": own, "wicked": own, "kind": content_name(vectors(1))}
    assert [one["name"] for one in held.listing()] == ["evil", "kind", "wicked"]


def test_what_is_held_does_not_follow_later_changes_of_the_tensor():
    held, mine = catalog(), vectors()
    own = held.add(mine, "evil")
    mine.zero_()
    assert torch.equal(held.vectors[own], vectors()) and content_name(held.vectors[own]) == own


def test_a_vector_of_all_layers_is_indexed_by_layer_and_one_of_none_serves_each():
    held = catalog()
    every, one = held.add(vectors()), held.add(vectors()[2])
    assert torch.equal(held.at(every, 2), vectors()[2]) and torch.equal(held.at(one, 3), vectors()[2])


def test_resolving_names_vectors_by_content_and_drops_what_does_nothing():
    held = catalog()
    own = held.add(vectors(), "evil")
    found = held.resolve((Step("evil", 3, 1), Step(own, 1, -2.0), Step("evil", 2, 0.0)))
    assert found == (Step(own, 1, -2.0), Step(own, 3, 1.0))


@pytest.mark.parametrize(
    ("vector", "part"),
    [
        (torch.ones(5), r"vector evil has shape \(5,\); tiny takes \(4,\), or \(4, 4\) for all layers"),
        (torch.ones(3, 4), r"has shape \(3, 4\)"),
        (torch.ones(1, 4, 4), r"has shape \(1, 4, 4\)"),
        (torch.tensor([1.0, float("nan"), 0.0, 0.0]), "vector evil has NaN or infinite numbers"),
        (torch.tensor([1.0, float("inf"), 0.0, 0.0]), "vector evil has NaN or infinite numbers"),
    ],
)
def test_a_vector_that_cannot_be_used_is_not_held(vector, part):
    held = catalog()
    with pytest.raises(ValueError, match=part):
        held.add(vector, "evil")
    assert not held.vectors and not held.names


def test_a_name_stands_for_one_vector():
    held = catalog()
    held.add(vectors(), "evil")
    with pytest.raises(ValueError, match="two vectors are called evil; give one another name"):
        held.add(vectors(1), "evil")
    assert held.names == {"evil": content_name(vectors())} and len(held.vectors) == 1


@pytest.mark.parametrize(
    ("step", "part"),
    [
        (Step("good", 1), "names the vector 'good', which is not loaded; loaded are: evil, late"),
        (Step("evil", 0), "steering layer 0: tiny can be steered here at layers 1 to 3"),
        (Step("evil", 4), "steering layer 4: tiny can be steered here at layers 1 to 3"),
        (Step("late", 1), "vector late is zero at layer 1: there is nothing to add"),
        (Step("late", 1, kind="ablate"), "vector late is zero at layer 1: there is nothing to ablate"),
        (Step("evil", 1, kind="cap"), "step 0: cap needs a floor, a ceiling or both"),
        (Step("evil", 1, float("nan")), "step 0 has coef nan; expected a finite number"),
        (Step("evil", 1, positions="answer"), "step 0 has positions 'answer'"),
        (Step("evil", 1, kind="sub"), "step 0 has kind 'sub'"),
    ],
)
def test_a_step_that_cannot_be_carried_out_is_refused(step, part):
    held = catalog()
    held.add(vectors(), "evil")
    held.add(torch.cat([torch.zeros(2, 4), vectors()[2:]]), "late")
    with pytest.raises(ValueError, match=part) as error:
        held.resolve((step,))
    assert "\n" not in str(error.value)


def test_an_empty_catalog_and_one_of_few_layers_say_so():
    with pytest.raises(ValueError, match="loaded are: none"):
        catalog().resolve((Step("evil", 1),))
    held = catalog(layers=(1, 3))
    held.add(vectors(), "evil")
    with pytest.raises(ValueError, match="steering layer 2: tiny can be steered here at layers 1, 3"):
        held.resolve((Step("evil", 2),))


def test_projections_are_counted_at_each_layer_and_token():
    held = catalog(projections=1)
    held.add(vectors(), "evil")
    ablations = [Step("evil", layer, 1.0, "all", "ablate") for layer in (1, 2)]
    assert len(held.resolve((*ablations, Step("evil", 1)))) == 3  # one at each layer, and what is added counts nowhere
    with pytest.raises(ValueError, match=r"asks for 2 ablations or caps at layer 1; this engine was started for 1"):
        held.resolve((ablations[0], Step("evil", 1, kind="cap", floor=0.0)))
    # prompt and response meet at the prompt's last token
    with pytest.raises(ValueError, match="asks for 2 ablations"):
        held.resolve((Step("evil", 1, 1.0, "prompt", "ablate"), Step("evil", 1, 1.0, "response", "ablate")))
