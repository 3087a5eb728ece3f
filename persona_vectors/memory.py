"""A batch that does not fit the device: it is halved, the work goes on, and that is said."""

from __future__ import annotations

import logging

import torch

logger = logging.getLogger(__name__)


def say_halved(doing: str, n: int) -> None:
    """Frees what torch keeps for later, and says that `n` rows did not fit and are halved.

    To be called outside of the exception's handler: its traceback holds on to the tensors.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    logger.warning("out of memory while %s %d at once; going on with %d", doing, n, max(1, n // 2))
