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
    path, found = folder / beside(entry["name"]), None
    if "idx" in entry:
        try:
            found = atomic.sha256_of(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            return f"cannot be read: {error.strerror}", f"sha256 {entry['idx']}", "an error"
    return difference(entry, found, "no file")


def difference(entry: dict[str, Any], found: str | None, none: str) -> tuple[str, str, str] | None:
    """Compare the SHA-256 of an index, None where there is none, as `damage` does."""
    if "idx" not in entry or found == entry["idx"]:
        return None
    expected = f"sha256 {entry['idx']}"
    if found is None:
        return "the index for DALI is missing", expected, none
    return "the index for DALI has changed", expected, f"sha256 {found}"
