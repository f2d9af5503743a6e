"""One logger with a rank prefix, and the shape of a progress callback."""

from __future__ import annotations

import logging
import os
from typing import Protocol

logger = logging.getLogger("glint")


class Progress(Protocol):
    """Called by long work: `done` of `total` units, `note` a short phrase to show beside them."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


def silent(done: int, total: int, note: str = "") -> None:
    """Show nothing."""


def set_up(level: int = logging.INFO) -> None:
    """Send glint's log lines to stderr, prefixed with the rank where there is one."""
    rank = os.environ.get("RANK")
    prefix = f"[rank {rank}] " if rank not in (None, "0") else ""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(prefix + "%(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
