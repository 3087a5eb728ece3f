"""What `--capture` keeps of a run: the means of its answers, beside its tables, as vLLM samples them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from eval.sweep import Setting, Study
from persona_vectors.captured_means import CapturedAnswer, forget_means, means_folder, write_means


def check_capture(engine: str, studies: Sequence[Study]) -> None:
    """Returns if there is something to capture.

    Raises:
        ValueError: another engine than vLLM, or settings that are steered.
    """
    if engine != "vllm":
        raise ValueError(
            f"--capture: only vLLM sums hidden states while it samples, and this run's engine is {engine}; leave "
            "--capture out, generate_vec.py then reads the answers itself"
        )
    steered = [setting for study in studies for setting in study.settings if setting.steering is not None]
    if steered:
        coef = steered[0].coef
        raise ValueError(f"--capture keeps what the unsteered model computes; --coef {coef:g} steers it: leave one out")


class KeptMeans:
    """Writes the means of a run's answers beside their tables, and counts them.

    Args:
        anew: forget what was captured for a table before, once there is something new.
    """

    def __init__(self, studies: Sequence[Study], anew: bool):
        self.anew = anew
        self.n: Counter[Path] = Counter()
        self._table_of = {
            study.settings[place]: output.path
            for study in studies
            for output in study.outputs
            for place in output.places
        }

    def keep(self, setting: Setting, captured: Sequence[CapturedAnswer]) -> None:
        """Takes answers of one setting that ended together."""
        table = self._table_of[setting]
        if self.anew and table not in self.n:
            forget_means(means_folder(table))
        self.n[table] += len(captured)
        write_means(means_folder(table), captured)

    def lines(self) -> list[str]:
        """What was kept, a line a table."""
        return [self._line(table) for table in dict.fromkeys(self._table_of.values())]

    def _line(self, table: Path) -> str:
        folder = means_folder(table)
        if self.n[table]:
            return f"captured the means of {self.n[table]} answers in {folder}"
        if folder.is_dir():
            return f"nothing was sampled now; what was captured before is in {folder}"
        return "nothing was sampled now, so nothing captured: generate_vec.py reads these answers itself"
