"""The synthetic language, training and measurement of models/tiny-persona."""
