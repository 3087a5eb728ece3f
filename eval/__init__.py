"""Commands that sample and score models."""
