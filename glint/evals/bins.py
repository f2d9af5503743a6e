"""Verification packs: InsightFace's `.bin`, read without running a line of what is in them.

A pack is a pickle of (encoded images in pair order, one bool per pair). Reading one takes two
passes over the bytes: every opcode is looked at first and must be of a kind that only builds
plain data within the size of the file; then an unpickler that knows eight names builds it.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from glint.errors import InputError, UnsafeError, UsageError
from glint.shards import commit

MAX_FILE = 1 << 31  # bytes; the largest packs in use are below 100 MB
MAX_IMAGE = 16 << 20  # bytes of one encoded image
MAX_DEPTH = 16  # open marks, and pickles nest no deeper than (list, list of reduce arguments)


@dataclass
class Pairs:
    """Image pairs to verify.

    images: encoded images; pair i is images[first[i]] and images[second[i]], by default
    images[2i] and images[2i+1]. same: bool per pair. folds: fold of each pair, None = ten equal
    runs. name: what to call the set; labels: what to call an image in a message.
    """

    images: Sequence[bytes]
    same: np.ndarray
    first: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    second: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    folds: np.ndarray | None = None
    name: str = "pairs"
    labels: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not len(self.first):
            self.first = np.arange(len(self.same), dtype=np.int64) * 2
            self.second = self.first + 1

    def __len__(self) -> int:
        return len(self.same)


def read_bin(path: str | Path) -> Pairs:
    """Read a verification pack of Python 2 or 3, of bytes or of numpy arrays.

    Raises UsageError GL0001 where there is no such file, UnsafeError GL0801 where the pickle asks
    for more than plain data or than its size allows, InputError GL0802 where it is cut short or
    holds something else than pairs.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError("GL0001", "no such file", where=str(path))
    if path.stat().st_size > MAX_FILE:
        raise InputError(
            "GL0802", f"{path.stat().st_size} bytes, expected at most {MAX_FILE}", where=str(path)
        )
    data = path.read_bytes()
    _scan(data, str(path))
    try:
        loaded = _PlainData(io.BytesIO(data), encoding="bytes").load()
    except (UnsafeError, InputError) as error:
        raise type(error)(error.code, error.what, where=str(path), hint=error.hint) from None
    except Exception as error:  # a pickle can fail in any way; none of them ran its code
        text = f"{type(error).__name__}: {error}"[:200]
        raise _malformed(f"the pickle does not load ({text})", path) from None
    return _pairs(loaded, path)


def write_bin(path: str | Path, images: Sequence[bytes], same: Sequence[bool]) -> None:
    """Write a verification pack that insightface reads; the file appears complete or not at all.

    images: encoded, two per pair. Raises InputError GL0802 where the counts do not fit.
    """
    path = Path(path)
    if len(images) != 2 * len(same):
        raise _malformed(f"{len(images)} images for {len(same)} pairs, expected two each", path)
    flags = [bool(value) for value in same]
    with commit.atomic(path) as file:
        pickle.dump(([bytes(image) for image in images], flags), file, protocol=4)


def _malformed(what: str, path: Path | str) -> InputError:
    return InputError(
        "GL0802", what, where=str(path),
        hint="a pack is a pickle of (list of 2N encoded images, list of N bools)",
    )  # fmt: skip


# --- first pass: opcodes -------------------------------------------------------------------------

_BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_TEXT = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"}
_TEXT |= {"STRING", "BINSTRING", "SHORT_BINSTRING"}
_NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1", "INT", "LONG"}
_NAMES = {"GLOBAL", "STACK_GLOBAL"}
_MEMO_PUT = {"PUT", "BINPUT", "LONG_BINPUT"}
_MEMO = _MEMO_PUT | {"MEMOIZE", "GET", "BINGET", "LONG_BINGET"}
_SHAPES = {"EMPTY_LIST", "EMPTY_TUPLE", "LIST", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_SHAPES |= {"MARK", "APPEND", "APPENDS", "NONE", "NEWTRUE", "NEWFALSE"}
_FRAME = {"PROTO", "FRAME", "STOP", "REDUCE", "BUILD"}
_PLAIN = _BYTES | _TEXT | _NUMBERS | _NAMES | _MEMO | _SHAPES | _FRAME


def _scan(data: bytes, where: str) -> None:
    """Refuse a pickle whose opcodes could do more than build plain data of about its own size."""
    allowed = 1 << 16 | len(data) // 24  # an object costs some 50 bytes: at most twice the file
    depth = count = 0
    try:
        for opcode, argument, position in _opcodes(data):
            count += 1
            name = opcode.name
            if name not in _PLAIN:
                raise _unsafe(f"opcode {name} at byte {position}", where)
            if name in _BYTES or name in _TEXT:
                if len(argument) > MAX_IMAGE:
                    size = len(argument)
                    raise _unsafe(f"an item of {size} bytes at byte {position}", where)
            elif name in _MEMO_PUT and int(argument) > count:
                raise _unsafe(f"memo index {int(argument)} at byte {position}", where)
            elif name in _NUMBERS and not -(1 << 31) <= argument < 1 << 32:
                raise _unsafe(f"a number of over 32 bits at byte {position}", where)
            elif name == "GLOBAL" and argument not in _ALLOWED:
                raise _unsafe(f"the name {argument[:80]!r} at byte {position}", where)
            elif name == "FRAME" and argument > len(data):
                raise _malformed(f"cut short: a frame of {argument} bytes", where)
            elif name == "MARK":
                depth += 1
            elif name in {"APPENDS", "LIST", "TUPLE"}:
                depth -= 1
            if depth > MAX_DEPTH:
                raise _unsafe(f"nesting deeper than {MAX_DEPTH} at byte {position}", where)
            if count > allowed:
                raise _unsafe(f"over {allowed} operations in {len(data)} bytes", where)
    except (ValueError, IndexError, EOFError, OverflowError) as error:
        raise _malformed(f"not a pickle, or cut short ({error})", where) from None


def _opcodes(data: bytes) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int]]:
    """Walk the opcodes up to STOP; a text number of over 64 digits stops the walk unparsed."""
    for opcode, argument, position in pickletools.genops(_ShortLines(data)):
        yield opcode, argument, -1 if position is None else position


class _ShortLines(io.BytesIO):
    """Bytes whose lines end at the longest one a plain pickle has: an image as text."""

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(4 * MAX_IMAGE)
        if len(line) > 64 and line.strip(b"-0123456789L\n") == b"":
            raise ValueError("a number of over 64 digits")
        return line


def _unsafe(what: str, where: str = "") -> UnsafeError:
    return UnsafeError(
        "GL0801", f"expected plain images and bools, found {what}", where=where,
        hint="nothing of it was run; get the pack from its publisher, or rebuild it",
    )  # fmt: skip


# --- second pass: objects ------------------------------------------------------------------------


class _Inert:
    """What a pickle may hold but never change: BUILD on it is refused."""

    __slots__ = ()

    def __setstate__(self, state: object) -> NoReturn:
        raise _unsafe("a change to something that is not an array")


class _Encode(_Inert):
    """`_codecs.encode`, as protocols 0 to 2 store bytes: latin-1 text."""

    __slots__ = ()

    def __call__(self, text: object, encoding: object = "latin1") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1", "latin-1"):
            raise _unsafe("text in another encoding than latin1")
        return text.encode("latin1")


class _Type:
    """A numpy dtype by name; only bytes and bools are let through."""

    __slots__ = ("code",)

    def __init__(self, code: str) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("|", b"|"):
            raise _unsafe("a numpy dtype of more than one byte")


class _Array:
    """A one-dimensional array of bytes or bools, as raw bytes."""

    __slots__ = ("code", "raw")

    def __init__(self, code: str = "", raw: bytes = b"") -> None:
        self.code, self.raw = code, raw

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or self.code:
            raise _unsafe("a numpy array in an unknown form")
        _, shape, kind, _, raw = state
        self.code, self.raw = _content(kind, shape, raw)


def _content(kind: object, shape: object, raw: object) -> tuple[str, bytes]:
    if isinstance(raw, bytearray):
        raw = bytes(raw)
    if not isinstance(kind, _Type) or not isinstance(raw, bytes):
        raise _unsafe("a numpy array of something else than bytes")
    if not isinstance(shape, tuple) or len(shape) > 2 or not all(type(n) is int for n in shape):
        raise _unsafe("a numpy array of more than two dimensions")
    if math.prod(shape) != len(raw):
        raise _malformed(f"a numpy array of shape {shape} with {len(raw)} bytes", "")
    return kind.code, raw


class _NumpyType(_Inert):
    __slots__ = ()

    def __call__(self, code: object = None, *flags: object) -> _Type:
        name = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(name, str) or name not in ("u1", "b1", "|u1", "|b1"):
            found = repr(name[:20]) if isinstance(name, str) else type(name).__name__
            raise _unsafe(f"a numpy dtype {found}")
        return _Type(name[-2:])


class _NumpyArray(_Inert):
    __slots__ = ()

    def __call__(self, *_: object) -> NoReturn:
        raise _unsafe("a call of numpy.ndarray")


class _Reconstruct(_Inert):
    __slots__ = ()

    def __call__(self, kind: object, *_: object) -> _Array:
        if not isinstance(kind, _NumpyArray):
            raise _unsafe("a numpy array of an unknown class")
        return _Array()


class _Scalar(_Inert):
    __slots__ = ()

    def __call__(self, kind: object, raw: object = None) -> bool:
        code, content = _content(kind, (1,), raw)
        if code != "b1":
            raise _malformed("a number where a bool was expected", "")
        return content != b"\x00"


class _FromBuffer(_Inert):
    __slots__ = ()

    def __call__(self, raw: object, kind: object, shape: object, order: object = "C") -> _Array:
        return _Array(*_content(kind, shape, raw))


_ALLOWED: dict[str, _Inert] = {"_codecs encode": _Encode(), "numpy dtype": _NumpyType()}
_ALLOWED["numpy ndarray"] = _NumpyArray()
for _core in ("numpy.core", "numpy._core"):  # numpy 2 renamed it
    _ALLOWED[f"{_core}.multiarray _reconstruct"] = _Reconstruct()
    _ALLOWED[f"{_core}.multiarray scalar"] = _Scalar()
    _ALLOWED[f"{_core}.numeric _frombuffer"] = _FromBuffer()


class _PlainData(pickle.Unpickler):
    """An unpickler whose every name is one of ours; nothing is imported."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[f"{module} {name}"]
        except KeyError:
            raise _unsafe(f"the name {module[:40]}.{name[:40]}") from None

    def persistent_load(self, key: Any) -> NoReturn:
        raise _unsafe("a persistent reference")


# --- what came out -------------------------------------------------------------------------------


def _pairs(loaded: object, path: Path) -> Pairs:
    if not isinstance(loaded, tuple | list) or len(loaded) != 2:
        raise _malformed(f"expected a pair of lists, found {type(loaded).__name__}", path)
    images, flags = loaded
    if isinstance(flags, _Array) and flags.code == "b1":
        flags = [byte != 0 for byte in flags.raw]
    if not isinstance(images, list | tuple) or not isinstance(flags, list | tuple):
        found = f"{type(images).__name__} and {type(flags).__name__}"
        raise _malformed(f"expected two lists, found {found}", path)
    if len(images) % 2:
        raise _malformed(f"an odd number of images ({len(images)}), expected two per pair", path)
    if len(images) != 2 * len(flags):
        raise _malformed(f"{len(images)} images for {len(flags)} pairs, expected two each", path)
    if not flags:
        raise _malformed("no pairs", path)
    for i, flag in enumerate(flags):
        if not isinstance(flag, bool):
            raise _malformed(f"pair {i}: expected True or False, found {type(flag).__name__}", path)
    return Pairs(
        [_image(item, i, path) for i, item in enumerate(images)],
        np.array(flags, dtype=bool),
        name=path.stem,
    )


def _image(item: object, number: int, path: Path) -> bytes:
    if isinstance(item, _Array) and item.code == "u1":
        item = item.raw
    if isinstance(item, bytearray):
        item = bytes(item)
    if not isinstance(item, bytes) or not item:
        found = "nothing" if item == b"" else type(item).__name__
        raise _malformed(f"image {number}: expected encoded bytes, found {found}", path)
    return item
