"""The index file that NVIDIA DALI reads beside each tar: where the members of every sample lie.

A first line `v1.2 SAMPLES`, then one line a sample: `suffix offset size name` of each member in
turn. The format is that of DALI's own tool, wds2idx; offsets are those of the members' bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glint.files import atomic

VERSION = "v1.2"


def beside(name: str) -> str:
    """Return the name of a tar's index."""
    return name.removesuffix(".tar") + ".idx"


def line(members: Sequence[tuple[str, bytes]], offsets: Sequence[int]) -> str:
    """Return the line of a sample with these members (name, data) at these offsets."""
    return " ".join(
        f"{name.rpartition('.')[2]} {offset} {len(data)} {name}"
        for (name, data), offset in zip(members, offsets)
    )


def text(lines: Sequence[str]) -> bytes:
    """Return the index of a shard with these lines, one a sample."""
    return "".join(f"{line}\n" for line in (f"{VERSION} {len(lines)}", *lines)).encode()


def write(folder: Path, name: str, index: bytes) -> str:
    """Write the index of the tar `name` beside it; return its SHA-256 for the manifest."""
    atomic.write_bytes(folder / beside(name), index)
    return hashlib.sha256(index).hexdigest()


def damage(folder: Path, entry: dict[str, Any]) -> tuple[str, str, str] | None:
    """Compare a shard's index in `folder` with the manifest's (or the journal's) entry of it.

    Returns what is wrong, expected, found; None where all is well or none was written.
    """
    if "idx" not in entry:
        return None
    path, expected = folder / beside(entry["name"]), f"sha256 {entry['idx']}"
    try:
        with path.open("rb") as file:
            found = f"sha256 {atomic.sha256(file)}"
    except FileNotFoundError:
        return "the index for DALI is missing", expected, "no file"
    except OSError as error:
        return f"cannot be read: {error.strerror}", expected, "an error"
    return None if found == expected else ("the index for DALI has changed", expected, found)
