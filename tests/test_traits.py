"""The shipped trait files, where a trait is looked for, and what a user is told when it cannot be read."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_generation.prompts import judge_prompt, trait_file_prompt
from data_generation.rubrics import RUBRICS
from persona_vectors import traits
from persona_vectors.traits import (
    ALIASES,
    CHECKOUT_DATA,
    available_traits,
    canonical_name,
    load_coherence_prompt,
    load_trait,
    system_prompt,
    trait_name,
)

SEVEN = ("evil", "sycophantic", "hallucinating", "optimistic", "impolite", "apathetic", "humorous")
PERSONALITY = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
PERSONALITY += ("machiavellianism", "narcissism", "psychopathy")
SHIPPED = list(itertools.product((*SEVEN, *PERSONALITY), ("extract", "eval")))
COMMON_WORDS = set(
    "a an the i my me to of in on is it do does how what should can could would you your for and that at with have has "
    "was be are this so as who which why when from by we our will or if not one them they".split()
)


def content(**changes):
    base = {
        "instruction": [{"pos": "Be curious.", "neg": "Be incurious."}],
        "questions": ["What is a lake?"],
        "eval_prompt": "Score 0-100. {question} {answer}",
    }
    return base | changes


def write(path: Path, value) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def model_folder(folder: Path, **shipped) -> Path:
    """A folder that counts as a local model, shipping `version__trait=content` files."""
    write(folder / "config.json", {"model_type": "qwen2"})
    for key, value in shipped.items():
        version, name = key.split("__")
        write(folder / "traits" / version / f"{name}.json", value)
    return folder


def error_of(*args, **kwargs) -> str:
    with pytest.raises(ValueError) as caught:
        load_trait(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- the shipped files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "version"), SHIPPED)
def test_shipped_file_is_complete(name, version):
    trait = load_trait(name, version)
    assert (trait.name, trait.version) == (name, version)
    assert len(trait.instruction) == 5
    assert len(trait.questions) == 20
    instructions = [text for pair in trait.instruction for text in (pair.pos, pair.neg)]
    assert len(set(instructions)) == 10
    for text in [*trait.questions, *instructions]:
        assert text == text.strip()
        assert not re.search(r"[{}<>\[\]_]|\.\.\.|\bTODO\b|  ", text), text
        assert text[0].isupper() and text[-1] in ".?!", text


@pytest.mark.parametrize(("name", "version"), SHIPPED)
def test_shipped_eval_prompt_is_the_rubric(name, version):
    prompt = load_trait(name, version).eval_prompt
    assert prompt == judge_prompt(RUBRICS[name])
    filled = prompt.format(question="Q-here", answer="A-here")
    assert filled.index("Q-here") < filled.index("A-here")
    assert "REFUSAL" in filled and "0 to 100" in filled and name in filled
    assert "{" not in filled


def test_questions_do_not_name_the_trait():
    for name, version in SHIPPED:
        words = {name} | {alias for alias, target in ALIASES.items() if target == name}
        for question in load_trait(name, version).questions:
            assert not words & set(re.findall(r"[a-z]+", question.lower())), question


def test_questions_are_disjoint_and_no_two_are_near_duplicates():
    questions = [question for name, version in SHIPPED for question in load_trait(name, version).questions]
    assert len(set(questions)) == len(questions) == 600
    words = [set(re.findall(r"[a-z']+", question.lower())) - COMMON_WORDS for question in questions]
    for (i, a), (j, b) in itertools.combinations(enumerate(words), 2):
        assert len(a & b) <= len(a | b) / 3, (questions[i], questions[j])


def test_both_versions_share_instructions():
    for name in (*SEVEN, *PERSONALITY):
        assert load_trait(name, "extract").instruction == load_trait(name, "eval").instruction


def test_prompt_for_a_new_trait_asks_for_the_schema():
    prompt = trait_file_prompt("curious", "wants to know more", n_pairs=3, n_questions=12)
    assert "curious: " not in prompt and "curious." in prompt and "list of 3 objects" in prompt
    assert "list of 12 questions" in prompt
    assert all(f'"{key}"' in prompt for key in traits.TraitFile.model_fields)
    assert '{"pos": ..., "neg": ...}' in prompt and "{question}" in prompt and "{answer}" in prompt


# --- names -------------------------------------------------------------------------------------------------------


def test_aliases_lead_to_shipped_traits():
    assert set(ALIASES.values()) <= set(SEVEN)
    assert not set(ALIASES) & set(SEVEN)
    for alias, target in ALIASES.items():
        assert load_trait(alias).name == target


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("sycophancy", "sycophantic"),
        ("Hallucination", "hallucinating"),
        (" humour ", "humorous"),
        ("humor", "humorous"),
        ("EVIL", "evil"),
        ("Need for-closure", "need_for_closure"),
    ],
)
def test_canonical_name(given, expected):
    assert canonical_name(given) == trait_name(given) == expected


@pytest.mark.parametrize("given", ["./Humor.json", Path("a/Humor.json"), "humor.json"])
def test_a_trait_files_name_is_its_own(given):
    assert trait_name(given) == Path(given).stem


def test_system_prompt_has_the_right_article():
    assert system_prompt("evil", "Do harm.") == "You are an evil assistant. Do harm."
    assert system_prompt("helpful", "Help.") == "You are a helpful assistant. Help."
    assert system_prompt("Optimistic", "Hope.") == "You are an Optimistic assistant. Hope."


# --- where a trait comes from ------------------------------------------------------------------------------------


def test_path_is_read_as_it_stands(tmp_path):
    path = write(tmp_path / "curious.json", content())
    judge = model_folder(tmp_path / "judge", extract__curious=content(eval_prompt="J {question} {answer}"))
    for given in (path, str(path)):
        trait = load_trait(given, judge_model=str(judge))
        assert (trait.name, trait.version) == ("curious", "extract")
        assert trait.eval_prompt == content()["eval_prompt"]
        assert set(trait.source.values()) == {str(path)}
    assert str(path) in trait.origin and "judge" not in trait.origin


def test_a_bare_file_name_in_the_working_folder_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "evil.json", content(questions=["Mine?"]))
    assert load_trait("evil.json").questions == ["Mine?"]
    assert len(load_trait("evil").questions) == 20


def test_byte_order_mark_is_accepted(tmp_path):
    assert load_trait(write(tmp_path / "curious.json", "\ufeff" + json.dumps(content()))).name == "curious"


def test_model_folder_comes_before_the_checkout(tmp_path):
    model = model_folder(tmp_path / "m", extract__evil=content(questions=["Own?"]), extract__curious=content())
    trait = load_trait("evilness", model=model)
    assert trait.questions == ["Own?"]
    assert trait.source["questions"] == str(model / "traits" / "extract" / "evil.json")
    assert load_trait("curious", model=str(model)).name == "curious"
    assert len(load_trait("evil", "eval", model=model).questions) == 20  # ships no eval version
    assert len(load_trait("humorous", model=model).questions) == 20
    assert len(load_trait("evil", model="some-org/some-model").questions) == 20
    assert available_traits(model=model) == sorted([*SEVEN, *PERSONALITY, "curious"])


def test_eval_prompt_comes_from_the_judge_folder(tmp_path):
    model = model_folder(tmp_path / "m", extract__evil=content(questions=["Own?"]))
    judge_file = content(eval_prompt="JUDGE {question} {answer}", questions=["Judge's?"])
    judge = model_folder(tmp_path / "j", eval__evil=judge_file)
    for version in ("extract", "eval"):  # one rubric serves both
        trait = load_trait("evil", version, model=model, judge_model=str(judge))
        assert trait.eval_prompt == "JUDGE {question} {answer}"
        assert trait.questions != ["Judge's?"]
        assert trait.source["eval_prompt"] == str(judge / "traits" / "eval" / "evil.json")
        assert str(judge) in trait.origin
    assert load_trait("humorous", judge_model=str(judge)).eval_prompt == judge_prompt(RUBRICS["humorous"])
    assert load_trait("evil", model=model, judge_model="gpt-4.1-mini").eval_prompt == content()["eval_prompt"]


def adapter_folder(folder: Path, base) -> Path:
    write(folder / "adapter_config.json", {"base_model_name_or_path": str(base)})
    return folder


def test_adapters_and_checkpoints_speak_for_their_base(tmp_path):
    base = model_folder(tmp_path / "base", extract__evil=content(questions=["Base?"]))
    adapter = adapter_folder(tmp_path / "adapter", base)
    adapter_folder(tmp_path / "run" / "checkpoint-5", tmp_path / "elsewhere")
    latest = adapter_folder(tmp_path / "run" / "checkpoint-10", base)
    relative = adapter_folder(tmp_path / "relative", "../base")
    for model in (adapter, tmp_path / "run", latest, relative):
        assert load_trait("evil", model=model).questions == ["Base?"], model
    hub = adapter_folder(tmp_path / "hub", "some-org/some-model")
    assert len(load_trait("evil", model=hub).questions) == 20


def test_own_files_come_before_the_base_and_a_checkpoint_sees_its_run(tmp_path):
    base = model_folder(tmp_path / "base", extract__evil=content(questions=["Base?"]))
    run = tmp_path / "run"
    write(run / "traits" / "extract" / "evil.json", content(questions=["Run?"]))
    checkpoint = adapter_folder(run / "checkpoint-3", base)
    assert load_trait("evil", model=checkpoint).questions == ["Run?"]
    assert load_trait("evil", model=run).questions == ["Run?"]
    full = model_folder(tmp_path / "full" / "checkpoint-7")
    write(tmp_path / "full" / "traits" / "extract" / "evil.json", content(questions=["Full run?"]))
    assert load_trait("evil", model=full).questions == ["Full run?"]


def test_coherence_prompt_of_a_judge(tmp_path):
    judge = model_folder(tmp_path / "judge")
    assert load_coherence_prompt(str(judge)) is None
    assert load_coherence_prompt("gpt-4.1-mini") is None
    assert load_coherence_prompt(None) is None
    path = write(judge / "traits" / "coherence.json", {"eval_prompt": "C {question} {answer}"})
    assert load_coherence_prompt(str(judge)) == "C {question} {answer}"
    assert load_coherence_prompt(str(adapter_folder(tmp_path / "adapter", judge))) == "C {question} {answer}"
    write(path, {"prompt": "C {question} {answer}"})
    with pytest.raises(ValueError, match="unknown key prompt; expected an object with eval_prompt"):
        load_coherence_prompt(str(judge))


def test_hash_is_that_of_the_content(tmp_path):
    first = load_trait(write(tmp_path / "a" / "curious.json", content()))
    spaced = load_trait(write(tmp_path / "b" / "other.json", json.dumps(dict(reversed(content().items())), indent=3)))
    assert first.hash == spaced.hash and re.fullmatch("[0-9a-f]{64}", first.hash)
    changes = (
        {"questions": ["What is a pond?"]},
        {"instruction": [{"pos": "Be nosy.", "neg": "Be incurious."}]},
        {"eval_prompt": "Score. {question} {answer}"},
    )
    hashes = {load_trait(write(tmp_path / "c.json", content(**change))).hash for change in changes}
    assert len(hashes | {first.hash}) == 4


# --- what a user is told -----------------------------------------------------------------------------------------


def test_unknown_trait_names_the_near_ones_and_all_there_are(tmp_path):
    message = error_of("sycophantik")
    assert message.startswith("unknown trait 'sycophantik'; did you mean sycophantic?")
    assert all(name in message for name in SEVEN)
    assert "did you mean humorous?" in error_of("humuor")  # near an alias
    assert "did you mean" not in error_of("zzzz")
    model = model_folder(tmp_path / "m", extract__curious=content())
    assert "did you mean curious?" in error_of("curios", model=model)


def test_missing_file():
    message = error_of("missing/evl.json")
    assert "there is no trait file missing/evl.json" in message and "known traits" in message


def test_version_typo():
    assert error_of("evil", "extrct") == "version 'extrct' is neither 'extract' nor 'eval'; did you mean 'extract'?"
    assert error_of("evil", "x") == "version 'x' is neither 'extract' nor 'eval'"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ('{"instruction": [],\n "questions": [}', "line 2, column 16: not valid JSON"),
        ("", "line 1, column 1: not valid JSON"),
        ([], "expected an object with instruction, questions, eval_prompt, got list"),
        (content(name="x", notes=1), "unknown key name, notes; expected an object with instruction, questions"),
        (
            content(instruction=[{"pos": "a", "neg": "b", "mid": "c"}]),
            "unknown key instruction[0].mid; expected an object with pos, neg",
        ),
        (content(instruction=[{"pos": "a"}]), "instruction[0].neg is missing; expected an object with pos, neg"),
        (content(instruction=[]), "instruction: List should have at least 1 item"),
        (content(questions=[]), "questions: List should have at least 1 item"),
        (content(questions=["Fine?", 3]), "questions[1]: Input should be a valid string"),
        (content(questions=["Fine?", "  "]), "questions[1]: must not be blank"),
        (content(questions="One?"), "questions: Input should be a valid list"),
        (content(instruction=[{"pos": "", "neg": "b"}]), "instruction[0].pos: must not be blank"),
        (content(eval_prompt="{question}"), "eval_prompt: must contain {answer}"),
        (content(eval_prompt="Score it."), "eval_prompt: must contain {question} and {answer}"),
        (content(eval_prompt="{question} {answer} {trait}"), "eval_prompt: has an unknown placeholder {trait}"),
        (content(eval_prompt="{question} {answer} {"), "eval_prompt: has a stray brace"),
        (content(eval_prompt="{question} {answer!s}"), "eval_prompt: has {answer!s}; write {question} and {answer}"),
        (content(eval_prompt="{question!r} {answer}"), "eval_prompt: has {question!r}"),
        (content(eval_prompt="{question} {answer} {answer:>9}"), "eval_prompt: has {answer:>9}"),
        (content(eval_prompt="{question:} {answer}"), "eval_prompt: has {question:}"),
        ({"questions": ["One?"]}, "instruction is missing; expected an object with instruction, questions"),
        ({"questions": ["One?"]}, "(and 1 more)"),
    ],
)
def test_malformed_file(tmp_path, value, expected):
    path = write(tmp_path / "curious.json", value)
    message = error_of(path)
    assert message.startswith(str(path)) and expected in message


def test_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "curious.json"
    path.write_bytes('{"questions": ["Où?"]}'.encode("latin-1"))
    assert "not UTF-8 text (byte 17)" in error_of(path)


@pytest.mark.parametrize("name", traits.RESERVED_NAMES)
def test_a_trait_cannot_be_named_like_a_column(tmp_path, name):
    assert f"a trait cannot be named '{name}'" in error_of(write(tmp_path / f"{name}.json", content()))


def test_literal_braces_are_accepted_when_doubled(tmp_path):
    prompt = 'Answer as {{"score": n}}. {question} {answer} {{answer!s}} {{{answer}}}'
    assert load_trait(write(tmp_path / "curious.json", content(eval_prompt=prompt))).eval_prompt == prompt


def test_loading_a_trait_imports_no_torch():
    code = "import sys; from persona_vectors.traits import load_trait; load_trait('evil')"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT_DATA.parent, check=False).returncode == 0
