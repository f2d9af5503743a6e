"""Tar blocks of many members at once: headers, label members and padding as array operations."""

# n samples, b bytes of a block, d digits, t bytes of a name

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

BLOCK = 512
U8 = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

_ZERO = ord("0")
_WHOLE = np.dtype(f"V{BLOCK}")  # one block as one item: copied, not looped over
_ROWS = 4096  # headers made at a time
# By size modulo BLOCK: the bytes of an image's last block that are its own, as a mask.
_OWN = np.where(np.arange(BLOCK) < np.append(BLOCK, np.arange(1, BLOCK))[:, None], 255, 0)
_OWN = np.ascontiguousarray(_OWN.astype(np.uint8)).view(np.uint64)
_BEHIND = ~_OWN


class Room:
    """Where images that are read together lie: as in a tar, so that they need not be moved.

    Each begins at a multiple of BLOCK, with a block for its header before it and `after` bytes for
    other members behind its padding. `give` returns memory; it may be the same every time.
    """

    def __init__(self, give: Callable[[int], U8] | None = None, after: int = 0) -> None:
        self._give = give or (lambda size: np.empty(size, np.uint8))
        self._after = after

    def slots(self, size_n: Ints) -> Ints:
        """Return the bytes that images of at most these sizes take with all that is theirs."""
        return size_n + -size_n % BLOCK + (BLOCK + self._after)

    def lay(self, size_n: Ints) -> tuple[U8, Ints]:
        """Return memory for images of at most these sizes, and where each begins."""
        slot_n = self.slots(size_n)
        end_n = np.cumsum(slot_n)
        memory = self._give(int(end_n[-1]) if len(end_n) else 0)
        return memory, end_n - slot_n + BLOCK


def pad(block_b: U8, at_n: Ints, size_n: Ints) -> None:
    """Set to zero what stands behind images in their last blocks, which are `at_n`."""
    last_b = block_b.view(_WHOLE)[:, 0]
    own_nw = last_b[at_n].view(np.uint64).reshape(len(at_n), BLOCK // 8)
    own_nw &= _OWN[size_n % BLOCK]
    last_b[at_n] = own_nw.view(_WHOLE)[:, 0]


def template(suffix: bytes) -> tuple[bytes, int]:
    """Return the header of KEY.suffix as a %-template of (key, size, checksum), and its sum."""
    name = b"%09d." + suffix
    shape = (
        name
        + b"\0" * (100 - 9 - 1 - len(suffix))  # name
        + b"0000644\0"
        + b"0000000\0"
        + b"0000000\0"  # mode, uid, gid
        + b"%011o\0"
        + b"00000000000\0"  # size, mtime
        + b"%06o\0 "
        + b"0"
        + b"\0" * 100  # checksum, type, link
        + b"ustar\00000"
        + b"\0" * 64  # magic, version, user and group name
        + b"\0" * 183
    )  # device, prefix, padding
    # The checksum is taken with eight blanks in its own place.
    return shape, sum(shape % (0, 0, 0)) - sum(b"000000\0 ") + sum(b" " * 8)


def decimal(value_n: Ints, digits: int) -> U8:
    """Write numbers with leading zeros: ASCII [n, digits]."""
    out_dn = np.empty((digits, len(value_n)), np.uint8)
    rest_n = value_n.astype(np.uint32) if digits <= 9 else value_n
    for place in range(digits - 1, -1, -1):
        next_n = rest_n // 10
        out_dn[place] = rest_n - next_n * 10
        rest_n = next_n
    out_dn += _ZERO
    return np.ascontiguousarray(out_dn.T)


def octal(value_n: Ints, digits: int) -> U8:
    """Write numbers in base 8 with leading zeros: ASCII [n, digits]."""
    out_dn = np.full((digits, len(value_n)), _ZERO, np.uint8)
    rest_n = value_n
    for place in range(digits - 1, -1, -1):
        if not rest_n.any():
            break
        out_dn[place] += (rest_n & 7).astype(np.uint8)
        rest_n = rest_n >> 3
    return np.ascontiguousarray(out_dn.T)


def plain(value_n: Ints) -> tuple[U8, Ints]:
    """Write numbers from 0 up without leading zeros: ASCII [n, d], zero bytes behind; lengths."""
    digits = len(str(int(value_n.max(initial=0))))
    length_n = np.ones(len(value_n), np.int64)
    for power in range(1, digits):
        length_n += value_n >= 10**power
    padded_nd = decimal(value_n, digits)
    place_nd = np.arange(digits) + (digits - length_n)[:, None]
    out_nd = np.take_along_axis(padded_nd, np.minimum(place_nd, digits - 1), axis=1)
    out_nd[place_nd >= digits] = 0
    return out_nd, length_n


@lru_cache(maxsize=16)
def _empty(suffix: str) -> tuple[U8, int]:
    """Return the header of a member without key, size and checksum, and its sum."""
    shape, base = template(suffix.encode("ascii"))
    return np.frombuffer(shape % (0, 0, 0), np.uint8), base


def headers(key_nd: U8, suffix: str, size_n: Ints, tag_nt: U8 | None = None) -> U8:
    """Return the USTAR headers of the members KEY.suffix, uint8 [n, 512].

    Keys are ASCII; `tag_nt` is what stands between key and suffix in the name, zeros behind it.
    """
    empty_b, base = _empty(suffix)
    head_nb = np.empty((len(key_nd), BLOCK), np.uint8)
    head_nb[:] = empty_b
    size_nd = octal(size_n, 11)
    head_nb[:, :9], head_nb[:, 124:135] = key_nd, size_nd
    sum_n = key_nd.sum(axis=1, dtype=np.int64) + size_nd.sum(axis=1, dtype=np.int64)
    sum_n += base - 20 * _ZERO
    if tag_nt is not None:
        tail = np.frombuffer(b"." + suffix.encode("ascii"), np.uint8)
        length_n = (tag_nt != 0).sum(axis=1)
        for length in np.unique(length_n).tolist():
            row_m = np.flatnonzero(length_n == length)
            head_nb[row_m, 9 : 9 + length] = tag_nt[row_m, :length]
            head_nb[row_m, 9 + length : 9 + length + len(tail)] = tail
        sum_n += tag_nt.sum(axis=1, dtype=np.int64)
    head_nb[:, 148:154] = octal(sum_n, 6)
    return head_nb


def put(block_b: U8, at_n: Ints, row_nb: U8) -> None:
    """Copy blocks [n, 512] to the block numbers `at_n` of `block_b` [m, 512]."""
    block_b.view(_WHOLE)[:, 0][at_n] = np.ascontiguousarray(row_nb).view(_WHOLE)[:, 0]


class _Heads:
    """Headers of one kind of member, in the words of eight bytes that differ between them."""

    _NAME, _NUMBERS = slice(0, 5), slice(15, 20)  # the longest name; size, time and checksum

    def __init__(self, key_nd: U8, suffix: str, size_n: Ints, tag_nt: U8 | None = None) -> None:
        self._same_w = _empty(suffix)[0].view(np.uint64)
        self._own_nw = np.empty((len(key_nd), 10), np.uint64)
        for start in range(0, len(key_nd), _ROWS):
            part = slice(start, start + _ROWS)
            tag_mt = None if tag_nt is None else tag_nt[part]
            head_mw = headers(key_nd[part], suffix, size_n[part], tag_mt).view(np.uint64)
            self._own_nw[part, :5] = head_mw[:, self._NAME]
            self._own_nw[part, 5:] = head_mw[:, self._NUMBERS]

    def same(self, part: slice, found_mw: npt.NDArray[np.uint64]) -> bool:
        own_mw, same_w = self._own_nw[part], self._same_w
        return bool(
            np.array_equal(found_mw[:, self._NAME], own_mw[:, :5])
            and np.array_equal(found_mw[:, self._NUMBERS], own_mw[:, 5:])
            and (found_mw[:, 5:15] == same_w[5:15]).all()
            and (found_mw[:, 20:] == same_w[20:]).all()
        )


class Members:
    """What stands in a shard besides its images, of a byte or more: headers, padding, labels.

    labels: whether each sample has KEY.cls; else its label is in the name of its image.
    """

    def __init__(self, key_nd: U8, label_n: Ints, size_n: Ints, suffix: str, labels: bool) -> None:
        self._size_n, self._image_n = size_n, 1 + (size_n + BLOCK - 1) // BLOCK
        self._text_nd, length_n = plain(label_n)
        tag_nt = None if labels else np.insert(self._text_nd, 0, ord("_"), axis=1)
        self._images = _Heads(key_nd, suffix, size_n, tag_nt)
        self._labels = _Heads(key_nd, "cls", length_n) if labels else None
        self.count_n = self._image_n + 2 * labels  # blocks of each sample

    def same(self, part: slice, block_b: U8, at_m: Ints) -> bool:
        """Say whether a part of the samples, which begin at blocks `at_m`, has no other byte."""
        whole_b = block_b.view(_WHOLE)[:, 0]

        def found(at_m: Ints) -> npt.NDArray[np.uint64]:
            return whole_b[at_m].view(np.uint64).reshape(len(at_m), BLOCK // 8)

        last_m, size_m = at_m + self._image_n[part] - 1, self._size_n[part]
        if not self._images.same(part, found(at_m)):
            return False
        if (found(last_m) & _BEHIND[size_m % BLOCK]).any():
            return False
        if self._labels is None:
            return True
        body_mb, text_md = found(last_m + 2).view(np.uint8), self._text_nd[part]
        return (
            self._labels.same(part, found(last_m + 1))
            and np.array_equal(body_mb[:, : text_md.shape[1]], text_md)
            and not body_mb[:, text_md.shape[1] :].any()
        )
