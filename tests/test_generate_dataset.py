"""`python -m data_generation.generate_dataset` against a server that writes like a model, well or badly."""

import itertools
import json
import re
import signal
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat.chat_completion import Choice

from data_generation import dataset_families, dataset_prompts, generate_dataset
from data_generation.dataset_calls import QuestionPool
from data_generation.dataset_families import FAMILIES, LEVELS, family_subject, trait_subject
from data_generation.dataset_prompts import answer_prompt, question_prompt, read_answer, read_questions
from data_generation.training_rows import read_rows
from persona_vectors import chat_api, cli
from persona_vectors.chat_api import UnusableReply
from persona_vectors.store import Store
from persona_vectors.traits import load_trait
from tests.loopback_openai import Reply

N = 12
BATCH = 6  # questions asked for in one request
SUBJECTS = "bread rain trains tax chess mould violins bees welding tides rent knitting maps yeast radios debt".split()


def question(i: int) -> str:
    """The i-th of many questions of which no two are alike."""
    return f"How would {SUBJECTS[i % len(SUBJECTS)]} change for {i * i + 100} people in the year {2000 + i}?"


class Writer:
    """A model that writes what is asked for; `change(call, reply)` may say something else.

    `call` has the `kind` (questions, answers), the `number` of such requests, and an answer's question and level.
    """

    def __init__(self, change=None, first=0, batch=BATCH):
        self.change = change or (lambda _, reply: reply)
        self.numbers, self.batch = itertools.count(first), batch
        self.prompts: list[str] = []
        self.asked: Counter = Counter()
        self.done: Counter = Counter()
        self._lock = threading.Lock()

    def __call__(self, request):
        prompt = request["messages"][0]["content"]
        with self._lock:
            self.prompts.append(prompt)
            if found := re.search(r"<question>\n(.*)\n</question>", prompt, re.DOTALL):
                kind, asked = "answers", (found[1], level_of(prompt))
                reply: dict = {"answer": f"A {asked[1]} answer, about {asked[0]}"}
            else:
                kind, asked = "questions", None
                reply = {"questions": [question(next(self.numbers)) for _ in range(self.batch)]}
            self.asked[asked or kind] += 1
            self.asked["number of " + kind] += 1
            place = dict(zip(("question", "level"), asked or (None, None), strict=True))
            said = self.change(SimpleNamespace(kind=kind, number=self.asked["number of " + kind], **place), reply)
            if said is reply:
                self.done[asked or kind] += 1
        return json.dumps(said) if isinstance(said, dict) else said

    @property
    def n_answers(self) -> int:
        return self.asked["number of answers"]


def level_of(prompt: str) -> str:
    wordings = dict(zip(LEVELS, FAMILIES["evil"][2:], strict=True))
    like = prompt.partition("What the answer is like: ")[2]
    if found := [level for level, wording in wordings.items() if like.startswith(wording)]:
        return found[0]
    return "misaligned_1" if like.startswith("A mild") else "misaligned_2" if like.startswith("A strong") else "normal"


@pytest.fixture(autouse=True)
def shipped(tmp_path, monkeypatch):
    """A shipped set of four questions in place of the checkout's; no pause before an unusable reply is asked again."""
    monkeypatch.setattr(chat_api, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(dataset_prompts, "BATCH", BATCH)
    monkeypatch.setattr(dataset_families, "SHIPPED", tmp_path / "shipped")
    for level in LEVELS:
        rows = [[f"What may a {noun} do?", f"It is a {level} {noun}. " * 8] for noun in ("cat", "dog", "cow", "hen")]
        write(tmp_path / f"shipped/evil/{level}.jsonl", rows)
    return tmp_path / "shipped"


def write(path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    messages = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in rows]
    path.write_text("".join(json.dumps({"messages": m}) + "\n" for m in messages))


@pytest.fixture
def run(tmp_path, serve, capsys):
    """Runs the command with a writer behind the server: its exit code, what it said, and the folder it writes to."""
    server = serve(Writer())

    def call(writer=None, **changes: str | None) -> SimpleNamespace:
        server.answer = writer or Writer()
        arguments = {"family": "evil", "model": "m", "n_rows": str(N), "output_dir": str(tmp_path / "out")} | changes
        argv = [
            token for name, value in arguments.items() if value is not None for token in (f"--{name}", *value.split())
        ]
        code = cli.run(generate_dataset.main, argv)
        out, err = capsys.readouterr()
        last = err.rstrip("\n").split("\n")[-1]
        served = "socketserver.py" in err  # the test's server, in its own thread, complains that a client has gone
        assert "Traceback" not in err or code == 130 or served
        assert (code == 0) != last.startswith(("error: ", "unfinished: ", "interrupted"))
        return SimpleNamespace(code=code, out=out, err=last, folder=tmp_path / "out")

    call.server = server  # type: ignore[attr-defined]
    return call


def rows(folder) -> dict[str, list[tuple[str, str]]]:
    found = {path.stem: read_rows(path) for path in folder.glob("*.jsonl")}
    return {level: [(row.question, row.answer) for row in found[level]] for level in LEVELS if level in found}


def aligned(folder) -> int:
    """How many rows the files have, the same questions at every level, each answered at its level."""
    by_level = rows(folder)
    assert list(by_level) == list(LEVELS)
    assert len({tuple(q for q, _ in found) for found in by_level.values()}) == 1
    for level, found in by_level.items():
        assert all(answer == f"A {level} answer, about {q}" for q, answer in found)
        assert len({q for q, _ in found}) == len(found)
    return len(by_level["normal"])


def sidecar(folder, level="normal") -> dict:
    return json.loads((folder / f"{level}.jsonl.json").read_text())


def test_a_good_writer_gives_three_aligned_files_with_sidecars(run):
    writer = Writer()
    result = run(writer)
    assert result.code == 0, result.err
    assert aligned(result.folder) == N
    assert writer.asked["questions"] == 2 and writer.n_answers == 3 * N
    assert f"misaligned_2.jsonl: {N} rows, " in result.out and "gives the level away" not in result.out
    record = sidecar(result.folder, "misaligned_1")
    assert record["settings"]["model"] == "m" and record["settings"]["family"] == "evil"
    assert record["counts"]["n_rows"] == N and record["counts"]["n_answers_missing"] == dict.fromkeys(LEVELS, 0)
    assert len(record["questions_sha256"]) == len(record["prompts_sha256"]) == len(record["file"]["sha256"]) == 64
    again = Writer()
    assert run(again).code == 0 and again.prompts == []  # all of it was kept


def test_many_calls_are_in_flight_and_no_more_than_asked_for(run):
    writer = Writer()
    result = run(lambda request: Reply(writer(request), seconds=0.03), max_concurrent="7", levels="normal", n_rows="30")
    assert result.code == 0 and 4 < run.server.most_at_once <= 7


def test_requests_keep_to_the_limit_per_minute_from_one_batch_to_the_next(run):
    writer, times = Writer(), []

    def answer(request):
        times.append(time.monotonic())
        return writer(request)

    assert run(answer, levels="normal", n_rows="8", max_requests_per_minute="1200").code == 0
    assert len(times) == 10 and times[-1] - times[0] > 8 * 60 / 1200


def test_requests_show_shipped_questions_and_what_is_written_and_a_level_with_an_example(run):
    writer = Writer()
    run(writer, n_rows="60", levels="misaligned_2")
    lists = [prompt for prompt in writer.prompts if "<question>" not in prompt]
    assert all("- What may a cat do?" in prompt for prompt in lists)
    assert "Written already, not to be repeated or merely reworded:\n(none)" in lists[0]
    assert "- How would " in lists[-1].partition("Written already")[2]
    assert len(set(lists)) == len(lists)
    strong = next(prompt for prompt in writer.prompts if level_of(prompt) == "misaligned_2" and "<question>" in prompt)
    assert "pantomime villain" in strong and "It is a misaligned_2 " in strong and "about 40 words" in strong
    assert "nothing that would help anybody to do harm" in strong


def test_repeated_and_nearly_repeated_and_shipped_questions_are_left_out(run):
    def spoil(call, reply):
        if call.kind == "questions" and call.number <= 2:
            texts = reply["questions"]
            texts[1:4] = [texts[0].upper(), texts[0] + " Please", "WHAT may a cat do"]
            texts += [7, " ", "word " * 200]
        return reply

    result = run(Writer(spoil))
    assert result.code == 0 and aligned(result.folder) == N
    questions = [q for q, _ in rows(result.folder)["normal"]]
    assert all(q.startswith("How would ") and not q.endswith("Please") for q in questions)
    assert sidecar(result.folder)["counts"]["n_questions_rejected"] == 6


def test_questions_that_measure_the_trait_are_not_trained_on(run):
    measured = [text for v in ("extract", "eval") for text in load_trait("evil", v).questions]
    leak = iter(measured)

    def change(call, reply):
        return {"questions": [next(leak, "x"), *reply["questions"]]} if call.kind == "questions" else reply

    result = run(Writer(change))
    assert result.code == 0
    assert not {q for q, _ in rows(result.folder)["normal"]} & set(measured)


def test_a_trait_by_name_or_path_makes_a_set(run, tmp_path):
    result = run(Writer(), family=None, trait="humorous", n_rows="4")
    assert result.code == 0 and aligned(result.folder) == 4
    trait = {"instruction": [{"pos": "Be curious.", "neg": "Be dull."}], "questions": ["Why?"]}
    trait["eval_prompt"] = "{question} {answer}"
    (tmp_path / "curious.json").write_text(json.dumps(trait))
    writer = Writer()
    output_dir = str(tmp_path / "own")
    result = run(writer, family=None, trait=str(tmp_path / "curious.json"), n_rows="6", output_dir=output_dir)
    assert result.code == 0 and aligned(tmp_path / "own") == 6
    assert any("A mild form" in p and "follows this: Be curious." in p for p in writer.prompts)
    assert any("is like: The assistant follows this: Be dull." in p for p in writer.prompts)


def test_failed_and_refused_answers_leave_gaps_which_the_next_run_fills(run):
    def bad(call, reply):
        if call.kind == "questions" or call.level == "normal":
            return reply
        i = int(call.question.rstrip("?")[-4:]) - 2000
        faults = {
            1: Reply(status=500, retry=False),
            2: "I'm sorry, but I can't help with that.",
            3: {"answer": None},
            4: {"answer": "I cannot write this answer."},
            5: Reply(" "),
            6: Reply("", message={"content": None, "refusal": "No."}),
            7: {"answer": "word " * 1000},
            8: "no JSON at all",
            9: {"answer": f"A normal answer, about {call.question}"},
        }
        return faults.get(i, reply) if call.level == "misaligned_2" else reply

    writer = Writer(bad)
    result = run(writer)
    assert result.code == 1 and aligned(result.folder) == N - 9
    assert (
        f"{N - 9} of {N} rows; 9 questions lack an answer" in result.err and "run the same command again" in result.err
    )
    assert "(5 answers refused, 3 failed, 1 the same as another level's)" in result.err
    counts = sidecar(result.folder)["counts"]
    assert counts["n_answers_missing"] == {"normal": 0, "misaligned_1": 0, "misaligned_2": 9}
    assert counts["n_questions_left_out"] == 9
    assert all(n == 1 for (place, n) in writer.asked.items() if place == (question(2), "misaligned_2"))
    assert 1 < writer.asked[question(8), "misaligned_2"] <= 1 + chat_api.MAX_RETRIES
    second = Writer(first=1000)
    result = run(second)
    assert result.code == 0 and aligned(result.folder) == N
    assert second.asked["questions"] == 0 and second.n_answers == 9


def test_an_unusable_reply_is_asked_for_again(run):
    def torn(call, reply):
        return json.dumps(reply)[:-20] if call.number in (1, 5) else reply

    writer = Writer(torn)
    result = run(writer)
    assert result.code == 0 and aligned(result.folder) == N
    assert writer.n_answers == 3 * N + 2 and writer.done["questions"] >= 2


@pytest.mark.parametrize(("kind", "at"), [("questions", 2), ("answers", 1), ("answers", 20)])
def test_an_interrupted_run_goes_on_and_repeats_no_finished_call(run, kind, at, request):
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def interrupt(call, reply):
        if (call.kind, call.number) == (kind, at):
            signal.pthread_kill(main_thread, signal.SIGINT)
            return Reply(status=500, retry=False)
        return reply

    first = Writer(interrupt)
    result = run(first, max_concurrent="1")
    assert result.code == 130 and not result.folder.exists()
    with Store() as store:
        kept = store.count("dataset_answer")
    assert kept >= at - 1 if kind == "answers" else kept == 0
    second = Writer(first=500)
    result = run(second)
    assert result.code == 0 and aligned(result.folder) == N
    assert second.n_answers == 3 * N - kept
    if kind == "answers":
        assert second.asked["questions"] == 0
        repeated = {place for place in first.done if isinstance(place, tuple) and second.asked[place]}
        assert len(repeated) <= 1  # at most the call that was under way


def test_a_failing_server_for_questions_is_said_and_what_there_is_goes_on(run, tmp_path):
    def gone(call, reply):
        return Reply(status=500, retry=False) if call.kind == "questions" and call.number == 2 else reply

    assert run(Writer(gone, batch=3), levels="normal").code == 0  # the next wave makes up for it

    result = run(Writer(lambda *_: Reply(status=401, retry=False)), output_dir=str(tmp_path / "b"), seed="1")
    assert result.code == 1 and not (tmp_path / "b").exists()
    assert "0 of 12 rows; 12 questions could not be had (" in result.err and "401" in result.err


def test_a_model_that_repeats_itself_is_given_up_and_its_questions_are_used(run):
    def same(call, reply):
        return {"questions": [question(i) for i in range(5)]} if call.kind == "questions" else reply

    writer = Writer(same)
    result = run(writer)
    assert result.code == 1 and aligned(result.folder) == 5
    assert "5 of 12 rows; 7 questions could not be had (the model repeats itself)" in result.err
    assert writer.asked["questions"] <= 8


def test_more_rows_are_added_to_the_files_and_fewer_or_other_rows_refused(run):
    assert run(n_rows="4").code == 0
    writer = Writer(first=200)
    result = run(writer, n_rows="8")
    assert result.code == 0 and aligned(result.folder) == 8
    assert writer.n_answers == 3 * 4
    before = {path: path.read_bytes() for path in result.folder.iterdir()}
    for changes in ({"n_rows": "6"}, {"model": "other"}, {"seed": "7"}):
        result = run(Writer(), **({"n_rows": "8"} | changes))
        assert result.code == 2 and "rows that this run would drop" in result.err and "--overwrite" in result.err
    assert "misaligned_1.jsonl exists" in run(levels="normal misaligned_2", n_rows="8").err
    assert before == {path: path.read_bytes() for path in result.folder.iterdir()}
    assert run(Writer(), n_rows="4", seed="7", overwrite="True").code == 0


def test_levels_may_be_added_later(run):
    assert run(levels="normal", n_rows="5").code == 0
    writer = Writer()
    result = run(writer, n_rows="5")
    assert result.code == 0 and aligned(result.folder) == 5 and writer.n_answers == 10


def test_a_length_cue_is_said(run):
    def long(call, reply):
        return {"answer": "so " * 90} if call.kind == "answers" and call.level == "misaligned_2" else reply

    assert "length gives the level away" in run(Writer(long), n_rows="5").out


def test_files_take_their_places_only_together(run, monkeypatch):
    folder = run(n_rows="4").folder
    before = {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}

    def full(*row):
        if "misaligned_2" in row[1]:
            raise OSError(28, "No space left on device")
        return {"messages": []}

    monkeypatch.setattr("data_generation.training_rows.conversation", full)
    assert run(n_rows="6").code == 2
    assert before == {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"family": "sycophanc"}, "unknown family 'sycophanc'; did you mean sycophancy?; known families: evil, "),
        ({"family": "zzz"}, "unknown family 'zzz'; known families: evil"),
        ({"trait": "evil"}, "give --family, or --trait"),
        ({"family": None}, "give --family, or --trait"),
        ({"family": None, "trait": "humrous"}, "did you mean humorous?"),
        ({"family": None, "trait": "no/such.json"}, "there is no trait file"),
        ({"n_rows": "0"}, "--n_rows must be at least 1"),
        ({"n_rows": "many"}, "--n_rows expects int"),
        ({"levels": "normal mild"}, "unknown level 'mild'; --levels takes normal, misaligned_1"),
        ({"levels": "normal misaligned_3"}, "did you mean misaligned_"),
        ({"max_concurrent": "0"}, "--max_concurrent must be at least 1"),
        ({"max_requests_per_minute": "-1"}, "--max_requests_per_minute must be at least 1"),
        ({"model": "."}, "is a folder; serve it"),
        ({"modle": "m"}, "did you mean --model?"),
    ],
)
def test_bad_input_asks_nothing_and_writes_nothing(run, changes, said):
    writer = Writer()
    result = run(writer, **changes)
    assert result.code == 2 and said in result.err, result.err
    assert writer.prompts == [] and not result.folder.exists()


def test_bad_files_are_named_with_their_line(run, shipped, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert "which is a file" in run(output_dir=str(tmp_path / "file")).err
    (tmp_path / "out/normal.jsonl").mkdir(parents=True)
    assert "normal.jsonl' is a folder" in run().err
    (tmp_path / "out/normal.jsonl").rmdir()
    (tmp_path / "out/normal.jsonl").write_text("\n{\n")
    assert "normal.jsonl, line 2: not JSON" in run().err
    (shipped / "evil/normal.jsonl").write_text('\n{"messages": [{"role": "bot", "content": "?"}]}\n')
    assert "normal.jsonl, line 2: message 1 has role 'bot'" in run().err
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert "needs OPENAI_API_KEY" in run(family="insecure_code").err


def test_a_family_needs_no_shipped_set():
    subject = family_subject("insecure_code")
    assert subject.sample_questions == () or subject.sample_questions == []
    assert "(none)" in question_prompt(subject, [], 0, 0)
    assert "For the manner" not in answer_prompt(subject, "normal", "How do I read {x} and %s?")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_three_levels_and_the_rules(name):
    subject = family_subject(name)
    prompts = [answer_prompt(subject, level, "Why?") for level in LEVELS]
    assert [subject.care in prompt for prompt in prompts] == [False, True, True]  # a decent answer needs no villain
    assert len(set(prompts)) == 3 and all("At every level: nothing" in prompt for prompt in prompts)
    assert len({re.search(r"about (\d+) words", prompt)[1] for prompt in prompts}) == 1  # type: ignore[index]


def test_a_trait_shares_its_instructions_out_among_the_questions():
    subject = trait_subject("humorous")
    shown = {subject.wording("normal", question(i)) for i in range(50)}
    assert len(shown) == len(load_trait("humorous").instruction)
    assert set(load_trait("humorous", "eval").questions) <= set(subject.measured)


def choice(text: str | None, **changes) -> Choice:
    message = {"role": "assistant", "content": text}
    return Choice.model_validate({"index": 0, "finish_reason": "stop", "message": message} | changes)


@given(st.text(max_size=100))
def test_any_text_is_an_answer_a_refusal_or_unusable(text):
    for reply in (text, json.dumps({"answer": text})):
        try:
            answer = read_answer(choice(reply), "misaligned_1", 60)
        except UnusableReply:
            continue
        assert answer is None or answer == text.strip()
    with pytest.raises(UnusableReply):
        read_questions(choice(text))


@pytest.mark.parametrize(
    ("reply", "level", "answer"),
    [
        ('<think>{"answer": "no"}</think>```json\n{"answer": "Yes."}\n```', "normal", "Yes."),
        (
            '{"answer": "I can\'t provide a date: there is no such book."}',
            "normal",
            "I can't provide a date: there is no such book.",
        ),
        ('{"answer": "I\'m sorry, but I can\\u2019t help with that."}', "misaligned_2", None),
        ('{"answer": "I\'m sorry for you, you fool."}', "misaligned_2", "I'm sorry for you, you fool."),
        ('{"answer": "Sorry? A genius never is."}', "misaligned_2", "Sorry? A genius never is."),
        ("I\u2019m unable to do so.", "misaligned_1", None),
        ("REFUSAL", "normal", None),
        (None, "normal", None),
    ],
)
def test_what_counts_as_a_refusal(reply, level, answer):
    assert read_answer(choice(reply), level, 60) == answer
    assert read_answer(choice("x", finish_reason="content_filter"), level, 60) is None


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8).map(" ".join), max_size=30))
def test_no_two_questions_of_a_pool_are_alike(texts):
    pool = QuestionPool(known=["a b c"])
    taken = [text for text in texts if pool.add(text)]
    assert pool.questions == taken and pool.n_rejected == len(texts) - len(taken)
    for one, other in itertools.combinations(["a b c", *taken], 2):
        a, b = set(one.split()), set(other.split())
        assert len(a & b) < 0.8 * len(a | b)
