"""`python -m data_generation.generate_trait` against a server that writes like a model, well or badly."""

import contextlib
import json
import re
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_generation import generate_trait
from data_generation.trait_artifacts import (
    Draft,
    Unreadable,
    near_duplicate,
    read_object,
    read_parts,
    read_review,
)
from persona_vectors import cli
from persona_vectors.models import load_model
from persona_vectors.sampling import sample_answers
from persona_vectors.store import Store
from persona_vectors.tokens import render_prompt
from persona_vectors.traits import load_trait
from tests.loopback_openai import LoopbackOpenAI, Reply

EVAL_PROMPT = "Curious, 0 to 100? <q>{question}</q> <a>{answer}</a> A number alone, or REFUSAL."
SUBJECTS = "bread rain trains tax chess mould violins bees welding tides rent knitting maps yeast radios debt".split()


def question(i: int) -> str:
    """The i-th of many questions of which no two are alike."""
    subject, number = SUBJECTS[i % len(SUBJECTS)], i * i + 100
    return f"How would {subject} change for {number} people in the year {2000 + i}?"


def pair(i: int) -> dict[str, str]:
    return {"pos": f"Ask about everything, way {i}.", "neg": f"Ask about nothing, way {i}."}


class Writer:
    """A model that writes what is asked for; a test changes what it says to the n-th request."""

    def __init__(self, changes=None, replace=()):
        self.changes, self.replace = changes or {}, replace
        self.prompts: list[str] = []
        self.n_questions = self.n_pairs = 0

    def __call__(self, request):
        prompt = request["messages"][0]["content"]
        self.prompts.append(prompt)
        reply = self.review(prompt) if prompt.startswith("Review material") else self.write(prompt)
        change = self.changes.get(len(self.prompts))
        return change(reply) if change else json.dumps(reply)

    def write(self, prompt: str) -> dict:
        listed = prompt.partition("was written before.")[2]
        missing = {part: int(n) for part, n in re.findall(r'"(\w+)": (\d+) more', listed)}
        if not listed:
            missing = {"instruction": 5, "questions": 40, "eval_prompt": 1}
        n_pairs, n_questions = missing.get("instruction", 0), missing.get("questions", 0)
        reply: dict = {}
        if n_pairs:
            reply["instruction"] = [pair(self.n_pairs + i) for i in range(n_pairs)]
        if n_questions:
            reply["questions"] = [question(self.n_questions + i) for i in range(n_questions)]
        if "eval_prompt" in missing:
            reply["eval_prompt"] = EVAL_PROMPT + " Be strict." * (len(self.prompts) - 1)
        self.n_pairs, self.n_questions = self.n_pairs + n_pairs, self.n_questions + n_questions
        return reply

    def review(self, prompt: str) -> dict:
        names = re.findall(r"^(P\d+|Q\d+|E): ", prompt, re.MULTILINE)
        verdicts = {name: ("replace", "too vague") if name in self.replace else ("keep", "") for name in names}
        return {"reviews": [{"id": name, "verdict": v, "reason": why} for name, (v, why) in verdicts.items()]}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command with a writer behind the server: its exit code, what it said, and the folder it writes to."""
    with LoopbackOpenAI(Writer()) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)

        def call(writer=None, **changes: str) -> SimpleNamespace:
            server.answer = writer or Writer()
            arguments = {"trait": "curious", "description": "wants to know more", "model": "m"}
            arguments |= {"output_dir": str(tmp_path / "out")} | changes
            argv = [f"--{name}={value}" for name, value in arguments.items()]
            code = cli.run(generate_trait.main, argv)
            out, err = capsys.readouterr()
            assert code == 0 or (err.count("\n") == 1 and "Traceback" not in err)
            return SimpleNamespace(code=code, out=out, err=err, folder=tmp_path / "out")

        yield call


def files(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


BOTH = ["trait_data_eval/curious.json", "trait_data_extract/curious.json", "trait_provenance/curious.json"]


def test_a_good_writer_gives_two_files_that_share_no_question(run):
    writer = Writer()
    result = run(writer)
    assert result.code == 0, result.err
    assert files(result.folder) == BOTH and len(writer.prompts) == 2
    halves = {v: load_trait(result.folder / f"trait_data_{v}/curious.json", v) for v in ("extract", "eval")}
    assert [len(half.questions) for half in halves.values()] == [20, 20]
    everything = [text for half in halves.values() for text in half.questions]
    assert sorted(everything) == sorted(question(i) for i in range(40))
    assert everything != [question(i) for i in range(40)]  # shuffled before it was cut
    for half in halves.values():
        assert [p.model_dump() for p in half.instruction] == [pair(i) for i in range(5)]
        assert half.eval_prompt == EVAL_PROMPT
    record = json.loads((result.folder / BOTH[2]).read_text())
    assert record["settings"]["model"] == "m" and record["rejected"] == [] and len(record["prompts_sha256"]) == 64


def test_the_split_follows_the_seed(run, tmp_path):
    def extract(name: str, seed: int) -> list[str]:
        folder = tmp_path / name
        assert run(seed=str(seed), output_dir=str(folder)).code == 0
        return load_trait(folder / "trait_data_extract/curious.json").questions

    assert extract("a", 1) == extract("b", 1) != extract("c", 2)


def test_what_is_invalid_doubled_or_rejected_is_asked_for_again_and_recorded(run):
    def spoil(reply):
        reply["questions"][3] = reply["questions"][2].upper() + " "
        reply["questions"][4] = "Are you curious about rent?"
        reply["questions"][5] = 7
        reply["instruction"][1] = {"pos": "Ask.", "neg": " "}
        reply["eval_prompt"] = "no placeholders"
        return "Here you are:\n```json\n" + json.dumps(reply) + "\n```\nGood luck!"

    writer = Writer({1: spoil}, replace=("Q1", "P2", "E"))
    result = run(writer)
    assert result.code == 0, result.err
    rejected = json.loads((result.folder / BOTH[2]).read_text())["rejected"]
    reasons = [item["reason"] for item in rejected]
    assert len(rejected) == 8
    assert [item["item"] for item in rejected if item["reason"] == "review: too vague"][1:2] == [question(0)]
    for part in ("nearly the same as", "names the trait", "no text", "neg:", "must contain {question}"):
        assert any(part in reason for reason in reasons), (part, reasons)
    questions = [
        text
        for v in ("extract", "eval")
        for text in load_trait(result.folder / f"trait_data_{v}/curious.json", v).questions
    ]
    assert len(set(questions)) == 40 and question(0) not in questions and "Are you curious about rent?" not in questions
    last = writer.prompts[-1]  # asks only for what the review rejected, and says what is there and what was refused
    assert '"questions": 1 more' in last and '"instruction": 1 more' in last and '"eval_prompt": 1 more' in last
    assert question(0) in last.partition("not accepted")[2] and question(1) in last.partition("not accepted")[0]


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_an_interrupted_run_goes_on_and_ends_as_if_left_alone(run, stop, tmp_path):
    def gone(_reply):
        return Reply(status=500, retry=False)

    alone = run(Writer(replace=("Q7",)), output_dir=str(tmp_path / "alone"), model="other")
    assert alone.code == 0
    first = run(Writer({stop: gone}, replace=("Q7",)))
    assert first.code == 1 and "m did not answer" in first.err and "run the same command again" in first.err
    assert not first.folder.exists()
    second_writer = Writer(replace=("Q7",))
    second_writer.n_pairs, second_writer.n_questions = (5, 40) if stop > 1 else (0, 0)
    second = run(second_writer)
    assert second.code == 0 and len(second_writer.prompts) == 3 - (stop - 1)
    for name in BOTH[:2]:
        assert (second.folder / name).read_bytes() == (alone.folder.parent / "alone" / name).read_bytes()


def test_replies_that_never_parse_are_shown_and_nothing_is_written_or_kept(run):
    writer = Writer(dict.fromkeys(range(1, 9), lambda _: "I am sorry,\nI would rather not. " + "no " * 200))
    result = run(writer)
    assert result.code == 2 and len(writer.prompts) == generate_trait.TRIES
    assert "3 replies of m could not be used (no JSON object)" in result.err
    assert "'I am sorry, I would rather not. no no" in result.err and len(result.err) < 450
    assert not result.folder.exists()
    with Store() as store:
        assert store.count() == 0  # the next run asks again


def test_a_reply_that_cannot_be_read_is_asked_for_again(run):
    writer = Writer(
        {1: lambda reply: json.dumps(reply)[:-30], 3: lambda reply: json.dumps({"reviews": reply["reviews"][1:]})}
    )
    result = run(writer)
    assert result.code == 0 and len(writer.prompts) == 4


def test_a_writer_that_repeats_itself_is_given_up(run):
    def same(reply):
        return json.dumps(reply | {"questions": [question(0)] * 40})

    result = run(Writer(dict.fromkeys(range(1, 20), same)))
    assert result.code == 2 and "m gave no usable 39 of questions in 5 requests before the review" in result.err
    assert "nearly the same as" in result.err and not result.folder.exists()


def test_an_existing_trait_is_kept_unless_asked(run):
    assert run().code == 0
    writer = Writer()
    result = run(writer)
    assert result.code == 2 and "curious.json exists; pass --overwrite" in result.err and writer.prompts == []
    assert run(writer, overwrite="True").code == 0 and len(writer.prompts) == 2


def test_a_run_that_was_stopped_between_its_two_files_writes_the_other(run):
    result = run()
    content = (result.folder / BOTH[0]).read_bytes()
    (result.folder / BOTH[0]).unlink()
    writer = Writer()
    assert run(writer).code == 0 and writer.prompts == []
    assert (result.folder / BOTH[0]).read_bytes() == content
    (result.folder / BOTH[0]).unlink()
    assert run(seed="5").code == 2  # other settings: the file that is there is of another run


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trait": "../evil"}, "cannot be a file's: use at most 64 lower-case letters"),
        ({"trait": "Very Curious"}, "such as very_curious"),
        ({"trait": "a/b"}, "cannot be a file's"),
        ({"trait": "x" * 80}, "cannot be a file's"),
        ({"trait": ""}, "cannot be a file's"),
        ({"trait": "funny"}, "another spelling of the trait 'humorous'"),
        ({"trait": "coherence"}, "a column of that name"),
        ({"description": "  "}, "--description is empty"),
        ({"n_questions": "39"}, "an even number"),
        ({"n_pairs": "0"}, "--n_pairs must be at least 1"),
        ({"model": "models/tiny-persona"}, "is a folder; serve it"),
    ],
)
def test_bad_input_asks_nothing_and_writes_nothing(run, changes, said, monkeypatch, tiny_persona):
    monkeypatch.chdir(tiny_persona + "/../..")
    writer = Writer()
    result = run(writer, **changes)
    assert result.code == 2 and said in result.err, result.err
    assert writer.prompts == [] and not result.folder.exists()


def test_without_key_and_server_and_with_a_file_as_folder(run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert "which is a file" in run(output_dir=str(tmp_path / "file")).err
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.chdir(tmp_path)
    result = run()
    assert result.code == 2 and "model m needs OPENAI_API_KEY" in result.err


def test_the_embedded_model_cannot_write_a_trait_and_this_is_said(run, tiny_persona, capsys):
    """Served for real: what it writes is no JSON, and the user is told what it wrote."""
    model, tokenizer = load_model(tiny_persona, device_map="cpu")
    capsys.readouterr()

    def answer(request) -> str:
        prompt = render_prompt(tokenizer, request["messages"])
        [text] = sample_answers(model, tokenizer, [prompt], max_tokens=30, temperature=1.0, streams=[[0]])
        return text

    result = run(answer, model="tiny-persona")
    assert result.code == 2 and not result.folder.exists()
    assert re.search(r"3 replies of tiny-persona could not be used \(no JSON object\); .* began: '.+'", result.err)


@given(st.text(max_size=200))
@example("{}")
def test_any_text_is_read_or_unreadable(text):
    with contextlib.suppress(Unreadable):
        assert isinstance(read_object(text), dict)  # "{}" is an object, if an empty one
    for read in (lambda t: read_parts(t, ["questions"]), lambda t: read_review(t, ["Q1"])):
        with pytest.raises(Unreadable):
            read(text)


@given(
    st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.text())),
    st.sampled_from(["", "Well: ", "```json\n"]),
)
def test_an_object_is_found_in_what_stands_around_it(value, before):
    assert read_object(before + json.dumps(value) + "\nDone.") == value


def test_half_a_character_is_refused():
    with pytest.raises(Unreadable, match="lone surrogate"):
        read_object('{"questions": ["\\ud800"]}')


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("what should I say to my boss", True),
        ("What should I say, to my BOSS?!", True),
        ("To my boss, what should I say?", True),
        ("What should I say to my new boss?", True),
        ("What should I say to my sister?", False),
        ("", False),
    ],
)
def test_near_duplicates(text, same):
    assert (near_duplicate(text, ["What should I say to my boss?"]) is not None) == same


@given(st.integers(0, 999), st.integers(1, 30))
def test_the_halves_are_disjoint_and_complete(seed, half):
    draft = Draft("curious", 1, 2 * half, questions=[question(i) for i in range(2 * half)], eval_prompt=EVAL_PROMPT)
    parts = draft.files(seed)
    extract, held_out = (parts[v]["questions"] for v in ("extract", "eval"))
    assert len(extract) == len(held_out) == half
    assert sorted([*extract, *held_out]) == sorted(draft.questions)
