"""A questionnaire scored by the batched engine against a plain loop: one forward pass an item, order and option.

    python -m benchmarks.trait_scoring

The loop is written below as one would write it first: the prompt and one option's tokens through the model,
log-softmax, sum. Jobs: the three ways of scoring, on the questionnaire that models/tiny-persona ships; and random token
ids with the lengths of our own questionnaire under a 7B's tokenizer, on a random model whose lm_head has the share of
the arithmetic that it has in a 0.5B model. Ratios are medians over interleaved repeats, of processor time, since other
work may run beside. What sharing alone can give is the loop's tokens over the engine's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.reading import TINY, processor, random_model, tiny_persona
from persona_vectors import cli

if TYPE_CHECKING:
    from persona_vectors.option_likelihood import Choice, Found

TARGET = 5.0
SCORINGS = ("letter", "text", "open")
QUESTION, OPTION, ASK = 60, 24, 25
"""Tokens of a question with its template, of an option, and of the line that asks for an answer."""
HEAD_OF_A_HALF_B = 16_300  # words, at 22.6M weights in the blocks: 27% of the arithmetic


@dataclass(frozen=True)
class Timing:
    """One line of the table: seconds of both sides, a repeat each, and the largest difference of a log-likelihood."""

    model: str
    scoring: str
    n_prompts: int
    token_ratio: float
    loop: list[float]
    ours: list[float]
    worst: float

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.loop, self.ours, strict=True)]


def main(
    n_items: int = 24,
    n_random: int = 4,
    repeats: int = 3,
    threads: int = 1,
    seed: int = 0,
    output_path: str | None = None,
) -> None:
    """Print a table of ratios to the plain loop, with machine, commit and command.

    Args:
        n_items: of the questionnaire of models/tiny-persona.
        n_random: items of random token ids.
        repeats: of each side, interleaved, after a warm-up.
        threads: of the processor.
        seed: of the orders, the random weights and token ids.
        output_path: also write the table to this file.
    """
    if min(n_items, n_random, repeats, threads) < 1:
        raise ValueError("n_items, n_random, repeats and threads: expected at least 1 of each")
    from persona_vectors.files import check_output_path, provenance, write_text_atomic

    if output_path is not None:
        check_output_path(output_path)
    import torch

    torch.set_num_threads(threads)
    timings = []
    for name, model, choices in jobs(n_items, n_random, seed):
        timings += [measure(name, model, scoring, own, repeats) for scoring, own in choices.items()]
    made = provenance()
    text = "\n".join(
        [
            f"machine: {processor()}; {threads} thread(s), float32, processor time",
            f"commit: {made['git_commit']}; torch {made['versions']['torch']}; command: {made['command']}",
            "",
            *table(timings),
        ]
    )
    print(text)
    if output_path is not None:
        write_text_atomic(output_path, text + "\n")


def jobs(n_items: int, n_random: int, seed: int) -> list[tuple[str, Any, dict[str, list[Choice]]]]:
    """(what it is called, the model, choices of each way of scoring)."""
    return [
        ("tiny-persona", tiny_persona(), {scoring: questionnaire(n_items, scoring, seed) for scoring in SCORINGS}),
        (
            "random, head as in a 0.5B",
            random_model(HEAD_OF_A_HALF_B, seed),
            {scoring: random_choices(n_random, scoring, seed) for scoring in SCORINGS},
        ),
    ]


def questionnaire(n_items: int, scoring: Any, seed: int) -> list[Choice]:
    """The first items of models/tiny-persona's questionnaire, of all traits in turn."""
    from eval.trait_scoring import Asking, choice_of, rows_of
    from persona_vectors.models import load_tokenizer
    from persona_vectors.questionnaire import load_questionnaire

    source, tokenizer = load_questionnaire(None, TINY), load_tokenizer(TINY)
    by_trait = [source.of(trait) for trait in source.traits]
    items = [item for several in zip(*by_trait, strict=True) for item in several][:n_items]
    asking = Asking(source.wording(1), scoring, seed)
    return [choice_of(tokenizer, row) for i, item in enumerate(items) for row in rows_of(tokenizer, item, i, asking)[0]]


def random_choices(n_items: int, scoring: str, seed: int) -> list[Choice]:
    """Items of random token ids; one of four orders differs from the next in its options' places."""
    import torch

    from persona_vectors.option_likelihood import Choice
    from persona_vectors.option_shares import BALANCED

    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(10, 3_000, (length,), generator=generator).tolist())

    letters, ask, found = ((3,), (4,), (5,), (6,)), draw(ASK), []
    for _ in range(n_items):
        question, options = draw(QUESTION), [draw(OPTION) for _ in range(4)]
        for order in BALANCED[:1] if scoring == "open" else BALANCED:
            placed = tuple(options[k] for k in order)
            listed = () if scoring == "open" else (*(token for option in placed for token in option), *ask)
            found.append(Choice((*question, *listed), letters if scoring == "letter" else placed))
    return found


def plain_loop(model: Any, choices: Sequence[Choice]) -> Found:
    """log P of every option of every choice, one forward pass an option."""
    import torch

    found = []
    for choice in choices:
        row = []
        for option in choice.options:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*choice.prompt, *option]])).logits[0]
            log_odds = logits.log_softmax(-1)
            start = len(choice.prompt) - 1
            row.append(sum(float(log_odds[start + i, token]) for i, token in enumerate(option)))
        found.append(row)
    return found


def batched(model: Any, choices: Sequence[Choice]) -> Found:
    from persona_vectors.option_likelihood import option_log_likelihoods

    found: Found = [[] for _ in choices]
    for rows, values in option_log_likelihoods(model, choices):
        for row, own in zip(rows, values, strict=True):
            found[row] = own
    return found


def measure(name: str, model: Any, scoring: str, choices: Sequence[Choice], repeats: int) -> Timing:
    """Both sides in turn, after a warm-up."""
    plain_loop(model, choices[:1])
    batched(model, choices[:4])
    loop, ours, worst = [], [], 0.0
    for _ in range(repeats):
        theirs = timed(loop, lambda: plain_loop(model, choices))
        own = timed(ours, lambda: batched(model, choices))
        pairs = [pair for rows in zip(theirs, own, strict=True) for pair in zip(*rows, strict=True)]
        worst = max(worst, *(abs(a - b) for a, b in pairs))
    return Timing(name, scoring, len(choices), token_ratio(choices), loop, ours, worst)


def timed(seconds: list[float], job: Callable[[], Found]) -> Found:
    """The job's result; its processor time is added to the list."""
    start = time.process_time()
    result = job()
    seconds.append(time.process_time() - start)
    return result


def token_ratio(choices: Sequence[Choice]) -> float:
    """Tokens that the loop reads over those that the engine reads."""
    loop = sum(len(choice.prompt) + len(option) for choice in choices for option in choice.options)
    ours = sum(len(choice.prompt) + sum(len(option) - 1 for option in choice.options) for choice in choices)
    return loop / ours


def table(timings: Sequence[Timing]) -> list[str]:
    lines = [
        "| model | scored by | prompts | loop s | ours s | ratio (range) | target | tokens: loop / ours | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in timings:
        ratio = statistics.median(one.ratios)
        cells = [
            one.model,
            one.scoring,
            str(one.n_prompts),
            f"{statistics.median(one.loop):.2f}",
            f"{statistics.median(one.ours):.2f}",
            f"{ratio:.2f} ({min(one.ratios):.2f}-{max(one.ratios):.2f})",
            f"{TARGET:g} {'reached' if ratio >= TARGET else 'MISSED'}",
            f"{one.token_ratio:.2f}",
            f"{one.worst:.1e}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    cli.run(main)
