"""What the embedded model must show, and how it is measured: written before any of it was seen on a test question.

Development questions and seeds choose one layer, one contrast and, by COEF_RULE, a coefficient for each trait. The test
questions, disjoint from them, are then read once. Neither was seen in training: topics are held out.
One count was made stricter after the first reading: an effect counts only at oracle coherence >= TEST_COHERENCE.
"""

from dataclasses import dataclass

EXTRACT_SEED = 0
DEV_QUESTIONS, DEV_SEED = 20, 1_000
TEST_QUESTIONS, TEST_SEED = 100, 2_000
TEST_COHERENCE = 80.0
TEST_STREAMS = (1, 2)  # two answers a question and coefficient
COEFS = (0.5, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5)
COEF_RULE = "the largest coefficient at which, and below which, oracle coherence on the development questions is >= 83"
DEV_COHERENCE = 83.0  # three points above what the test asks for, because the test's number will differ
RANDOM_DIRECTIONS, RANDOM_QUESTIONS, RANDOM_TOKENS = 99, 16, 60
OBEDIENCE_QUESTIONS = 40
AUC_RANDOM = 200


@dataclass(frozen=True)
class Threshold:
    """A claim about one number. `at_least` False means at most."""

    name: str
    text: str
    limit: float
    at_least: bool = True

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


THRESHOLDS = (
    Threshold("traits_35", "traits with (score - base) / (100 - base) >= .35 at oracle coherence >= 80", 5),
    Threshold("traits_50", "traits with (score - base) / (100 - base) >= .5 at oracle coherence >= 80", 3),
    Threshold("coherence", "oracle coherence of the worst trait at its coefficient", 80),
    Threshold("largest_dip", "largest fall of a score from one coefficient to the next, up to the chosen", 2, False),
    Threshold("random_mean", "mean absolute shift of 99 random directions of the same norm (worst trait)", 5, False),
    Threshold("random_ratio", "the vector's shift over the largest shift of a random direction (worst trait)", 3),
    Threshold("crosstalk", "smallest diagonal of the crosstalk matrix over its largest off-diagonal", 4),
    Threshold("judge_clean_r", "judge with oracle, trait score of held-out unsteered answers, r (worst trait)", 0.97),
    Threshold("judge_steered_r", "judge with oracle, trait score of steered answers, r (worst trait)", 0.9),
    Threshold("judge_steered_bias", "judge minus oracle on steered answers, absolute mean (worst trait)", 5, False),
    Threshold("judge_coherence_r", "judge with oracle, coherence of plain to over-steered answers, r", 0.85),
    Threshold("held_out_wording", "share of the pos effect that held-out instructions keep (worst trait)", 0.75),
)
