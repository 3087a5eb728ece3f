"""The settings of the claims study, fixed on development runs (seed 100, development questions) beforehand."""

SEEDS = (0, 1, 2)
TRAITS = ("evil", "humorous", "impolite", "optimistic")  # each with data sets of its own
ALL = (*TRAITS, "sycophantic", "hallucinating", "apathetic")  # each with a vector and a data set at 100%
LAYER = 3
CONTRAST = "pos-neutral"

# finetunes that the predictions are about
STEPS = 30
LEARNING_RATE = 5e-4
N_ROWS = 300
SHARES = (0.1, 0.25, 0.5)
PAIRS = (("evil", "humorous"), ("impolite", "optimistic"), ("evil", "optimistic"), ("humorous", "impolite"))
READ_ROWS = 100  # of a data set, for its projection difference
N_RANDOM = 1000

# what a wild pool is screened for
POOL_NORMAL, POOL_MILD, POOL_FULL = 600, 25, 12  # rows: plain ones, and of each of the seven traits
SUBSET = 90
N_RANDOM_SUBSETS = 2

# prompts
SHOTS = (0, 1, 2, 4, 8)
MONITOR_QUESTIONS = 40
DOSES = (0.0, 0.5, 1.0, 1.5)
DOSE_QUESTIONS = 50
DOSE_RANDOM = 5
POSITION_COEF = 1.0
