"""One logger with a rank prefix, and the shape of a progress callback."""

from __future__ import annotations

import logging
import os
import re
from typing import Protocol

logger = logging.getLogger("glint")


# Control characters (C0 but tab and line feed, DEL, C1), what turns the direction of writing or
# breaks lines, and bytes of a name that is not UTF-8.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def plain(text: str) -> str:
    """Return text as a terminal may get it: what it would obey or hide is written as \\xNN."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


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
    handler.setFormatter(_Plain(prefix + "%(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
