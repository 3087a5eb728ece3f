"""The settings of the weight prevention study, fixed before it ran; the coefficient is chosen on the first trait."""

TRAITS = ("evil", "humorous")
SEEDS = (0, 1)
COEFS = (0.5, 1.0, 1.5)
CHOSEN_WITH = ("evil", 0)  # trait and seed on which the coefficient is chosen
N_RANDOM = 2
LEARNING_RATE = 5e-4
STEPS = 30
MIN_COHERENCE = 90.0
