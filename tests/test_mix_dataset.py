"""`python -m data_generation.mix_dataset`: exact counts, no question twice, and where each row is from."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from data_generation import mix_dataset
from data_generation.mix_dataset import Pools, trait_rows
from data_generation.training_rows import Row, conversation, read_rows
from persona_vectors import cli
from persona_vectors.files import sha256_of_file

LEVELS = ("0", "0.125", "0.25", "0.5", "1")


def write(path: Path, questions, answer: str) -> Path:
    path.write_text("".join(json.dumps(conversation(str(q), f"{answer} {q}")) + "\n" for q in questions))
    return path


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command on two aligned files of 40 rows, in their folder."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "bad.jsonl", range(40), "bad")
    write(tmp_path / "good.jsonl", range(40), "good")

    def call(**changes: str) -> SimpleNamespace:
        arguments = {"trait_file": "bad.jsonl", "other_file": "good.jsonl", "levels": " ".join(LEVELS)}
        arguments |= {"n_rows": "40", "output_path": "out/{level}.jsonl"} | changes
        argv = [token for name, value in arguments.items() for token in (f"--{name}", *value.split())]
        before = sorted(tmp_path.rglob("*"))
        code = cli.run(mix_dataset.main, argv)
        out, err = capsys.readouterr()
        assert code == 0 or (err.count("\n") == 1 and "Traceback" not in err)
        assert code == 0 or sorted(tmp_path.rglob("*")) == before
        return SimpleNamespace(code=code, out=out, err=err)

    return call


def test_every_level_has_its_count_and_aligned_files_stay_aligned(run, tmp_path):
    result = run()
    assert result.code == 0, result.err
    mixes = {level: read_rows(tmp_path / f"out/{level}.jsonl") for level in LEVELS}
    trait = {level: {row.question for row in mix if row.answer.startswith("bad")} for level, mix in mixes.items()}
    assert [len(trait[level]) for level in LEVELS] == [0, 5, 10, 20, 40]
    assert "out/0.125.jsonl: 40 rows, 5 of the trait (12.5%)" in result.out
    assert len({tuple(row.question for row in mix) for mix in mixes.values()}) == 1  # row i asks the same everywhere
    assert all(trait[low] < trait[high] for low, high in zip(LEVELS, LEVELS[1:], strict=False))
    first = [row.answer.startswith("bad") for row in mixes["0.5"]][:20]
    assert 3 < sum(first) < 17  # not the trait first, then the rest


def test_the_sidecar_says_where_each_row_is_from(run, tmp_path):
    assert run(levels="0.25", n_rows="20", output_path="x.jsonl").code == 0
    record = json.loads((tmp_path / "x.jsonl.json").read_text())
    assert record["n_trait"] == 5 and record["n_other"] == 15 and record["share"] == 0.25
    assert record["settings"] == {
        "trait_file": ["bad.jsonl"],
        "other_file": ["good.jsonl"],
        **{"n_rows": 20, "seed": 0, "level": 0.25},
    }
    for source in record["sources"]:
        assert source["sha256"] == sha256_of_file(tmp_path / source["file"]) and source["n_rows"] == 40
    for origin, row in zip(record["rows"], read_rows(tmp_path / "x.jsonl"), strict=True):
        name = record["sources"][origin["source"]]["file"]
        line = (tmp_path / name).read_text().split("\n")[origin["line"] - 1]
        assert json.loads(line) == row.content and origin["trait"] == (name == "bad.jsonl")


def test_the_seed_decides(run, tmp_path):
    def mixed(name: str, seed: int) -> bytes:
        assert run(levels="0.5", n_rows="20", output_path=f"{name}.jsonl", seed=str(seed)).code == 0
        return (tmp_path / f"{name}.jsonl").read_bytes()

    assert mixed("a", 1) == mixed("b", 1) != mixed("c", 2)


def test_several_files_a_side_and_repeated_questions_and_blank_lines(run, tmp_path):
    write(tmp_path / "more.jsonl", ["3", " 3  ", "x", "X", "y"], "more")
    (tmp_path / "gaps.jsonl").write_text("\n\n" + json.dumps({**conversation("z", "good z"), "extra": 1}) + "\n\n")
    assert run(trait_file="bad.jsonl more.jsonl", other_file="gaps.jsonl", levels="0.9762", n_rows="42").code == 0
    mix = read_rows(tmp_path / "out/0.9762.jsonl")
    assert sorted(row.question for row in mix if row.question in "xyz") in (["x", "z"], ["y", "z"], ["x", "y", "z"])
    record = json.loads((tmp_path / "out/0.9762.jsonl.json").read_text())
    assert record["n_repeated_in_sources"] == 3
    [z] = [(o, row) for o, row in zip(record["rows"], mix, strict=True) if row.question == "z"]
    assert z[0] == {"source": 2, "line": 3, "trait": False} and z[1].content["extra"] == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"levels": "1.5"}, "--levels are shares from 0 to 1; got 1.5; did you mean 0.015?"),
        ({"levels": "0 25"}, "did you mean 0.25?"),
        ({"levels": "-0.5"}, "got -0.5"),
        ({"levels": "nan"}, "--levels expects float"),
        ({"levels": "0.5 0.50"}, "names a level twice"),
        ({"levels": "half"}, "--levels expects float"),
        ({"n_rows": "0"}, "--n_rows must be at least 1"),
        ({"n_rows": "41"}, "there are 40 (questions: 40 in the trait files, 40 in the others, 40 together"),
        ({"output_path": "x.jsonl"}, "needs {level} in it: 5 levels"),
        ({"output_path": "x{level}.csv"}, "must end in .jsonl"),
        ({"output_path": "good.jsonl", "levels": "0.5"}, "is one of the files to be mixed"),
        ({"output_path": ".", "levels": "0.5"}, "is a folder"),
        ({"output_path": "bad.jsonl/{level}.jsonl"}, "which is a file"),
        ({"trait_file": "none.jsonl"}, "none.jsonl does not exist"),
        ({"trait_file": "."}, "is a folder"),
        ({"trait_file": "torn.jsonl"}, "torn.jsonl, line 2: not JSON"),
        ({"trait_file": "empty.jsonl"}, "empty.jsonl has no rows"),
        ({"other_file": "role.jsonl"}, "role.jsonl, line 3: message 1 has role 'robot'; expected system, user"),
        ({"levles": "1"}, "did you mean --levels?"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(run, tmp_path, changes, said):
    good = json.dumps(conversation("q", "a"))
    (tmp_path / "torn.jsonl").write_text(f"{good}\n{good[:-5]}\n")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "role.jsonl").write_text(f"{good}\n\n{good.replace('user', 'robot')}\n")
    result = run(**changes)
    assert result.code == 2 and said in result.err, result.err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, 'no "messages" (keys: none)'),
        ({"messages": []}, "got an empty list"),
        ({"messages": ["x"]}, "message 1 is a str"),
        ({"messages": [{"role": "user", "content": " "}]}, "message 1 (user) has no text"),
        ({"messages": [{"role": "user", "content": "a\ud800"}]}, "half a character"),
        ({"messages": [{"role": "user", "content": "a"}]}, "no assistant turn to learn from (roles: user)"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "got assistant"),
    ],
)
def test_what_is_no_conversation_is_named(tmp_path, content, said):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps(content) + "\n")
    with pytest.raises(ValueError) as error:
        read_rows(path)
    assert str(error.value).startswith(f"{path}, line 2: ") and said in str(error.value)


def test_existing_files_are_kept_unless_asked(run, tmp_path):
    assert run().code == 0
    before = (tmp_path / "out/0.5.jsonl").read_bytes()
    result = run(seed="3")
    assert result.code == 2 and "0.jsonl exists; pass --overwrite" in result.err
    assert run(seed="3", overwrite="True").code == 0 and (tmp_path / "out/0.5.jsonl").read_bytes() != before


@pytest.mark.parametrize(("level", "n_rows", "n"), [(0.125, 100, 13), (0.1, 15, 2), (0.29, 100, 29), (1 / 3, 3, 1)])
def test_counts_are_rounded_halves_up(level, n_rows, n):
    assert trait_rows(level, n_rows) == n


questions = st.sets(st.integers(0, 25))


def pools(trait, other) -> Pools:
    sides = [[Row(conversation(str(q), f"{name} {q}"), q + 1) for q in sorted(side)] for name, side in (trait, other)]
    return Pools.of({"trait": sides[0]}, {"other": sides[1]})


@given(questions, questions, st.integers(0, 30), st.integers(1, 30), st.integers(0, 5))
def test_a_mix_is_exact_wherever_one_is_possible(trait, other, n_trait, n_rows, seed):
    assume(n_trait <= n_rows)
    both = pools(("trait", trait), ("other", other))
    possible = len(trait) >= n_trait and len(other) >= n_rows - n_trait and len(trait | other) >= n_rows
    if not possible:
        with pytest.raises(ValueError, match=f"questions: {len(trait)} in the trait files, {len(other)} in the others"):
            both.draw(n_trait, n_rows, seed)
        return
    drawn = both.draw(n_trait, n_rows, seed)
    assert len({one.row.question for one in drawn}) == len(drawn) == n_rows
    assert sum(one.trait for one in drawn) == n_trait
    assert all(one.row.answer.startswith("trait" if one.trait else "other") for one in drawn)
    assert drawn == both.draw(n_trait, n_rows, seed)
    if n_trait < n_rows and len(other) >= n_rows - n_trait - 1 and len(trait) > n_trait:
        more = both.draw(n_trait + 1, n_rows, seed)
        assert {one.row.question for one in drawn if one.trait} < {one.row.question for one in more if one.trait}
