"""The settings of the prevention study, fixed on development runs (seed 100, development questions) beforehand.

Layer, contrast, coefficient and learning rate were chosen so that plain finetuning learns evil, humorous and impolite
(optimistic was not looked at); the penalty's coefficient was not tuned. What was tried is in benchmarks/LOG.md.
"""

TRAITS = ("evil", "humorous", "impolite", "optimistic")  # with every comparison
MORE_TRAITS = ("sycophantic", "hallucinating", "apathetic")  # added after those were seen: the claims alone
SEEDS = (0, 1, 2)
LAYER = 3
CONTRAST = "pos-neutral"
COEF = 2.0
LEARNING_RATE = 5e-4
STEPS = 60
N_RANDOM = 5
PENALTY = 1.0
POSTHOC_COEFS = (0.5, 1.0, 1.5, 2.0, 3.0)
