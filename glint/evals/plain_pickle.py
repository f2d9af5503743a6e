"""Pickles of plain data, read without running a line of what is in them.

Two passes over the bytes: every opcode is looked at first and must be of a kind that only builds
plain data of about the file's size; then an unpickler that knows a handful of names, none of them
the real one, builds it. Plain data is bytes, text, bool, small whole numbers, lists, tuples and
one-byte numpy arrays.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Iterator
from typing import Any, NoReturn

from glint.errors import InputError, UnsafeError

MAX_DEPTH = 16  # open marks; (list, list of (function, arguments)) needs five


def load(data: bytes, where: str, *, max_item: int) -> object:
    """Load a pickle of Python 2 or 3; text of Python 2 comes as bytes.

    max_item: largest string of bytes or text. Raises UnsafeError GL0801 for a pickle that asks for
    more than plain data or than its size allows, InputError GL0802 for one that is cut short.
    """
    _scan(data, where, max_item)
    try:
        return _PlainData(data).load()
    except (UnsafeError, InputError) as error:
        raise type(error)(error.code, error.what, where=where, hint=error.hint) from None
    except Exception as error:  # a pickle can fail in any way; none of them ran its code
        text = f"{type(error).__name__}: {error}"[:200]
        raise _malformed(f"the pickle does not load ({text})", where) from None


def _malformed(what: str, where: str = "") -> InputError:
    return InputError("GL0802", what, where=where, hint="get the file again, or rebuild it")


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


def _scan(data: bytes, where: str, max_item: int) -> None:
    """Refuse a pickle whose opcodes could do more than build plain data of about its own size."""
    allowed = 1 << 16 | len(data) // 24  # an object costs some 50 bytes: at most twice the file
    depth = count = 0
    try:
        for opcode, argument, position in _opcodes(data, 4 * max_item):
            count += 1
            name = opcode.name
            if name not in _PLAIN:
                raise _unsafe(f"opcode {name} at byte {position}", where)
            if name in _BYTES or name in _TEXT:
                if len(argument) > max_item:
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


def _opcodes(data: bytes, longest: int) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int]]:
    """Walk the opcodes up to STOP; a text number of over 64 digits stops the walk unparsed."""
    for opcode, argument, position in pickletools.genops(_ShortLines(data, longest)):
        yield opcode, argument, -1 if position is None else position


class _ShortLines(io.BytesIO):
    """Bytes whose lines end at the longest one a plain pickle has: an image as text."""

    def __init__(self, data: bytes, longest: int) -> None:
        super().__init__(data)
        self.longest = longest

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(self.longest)
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


class _Copies(_Inert):
    """A name whose calls make bytes; all of them together no more than the file has."""

    __slots__ = ("left",)

    def __init__(self, size: int) -> None:
        self.left = size

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise _unsafe("the same bytes made over and over")


class _Encode(_Copies):
    """`_codecs.encode`, as protocols 0 to 2 store bytes: latin-1 text."""

    __slots__ = ()

    def __call__(self, text: object, encoding: object = "latin1") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1", "latin-1"):
            raise _unsafe("text in another encoding than latin1")
        self.take(len(text))
        return text.encode("latin1")


class _Type:
    """A numpy dtype by name; only bytes and bools are let through."""

    __slots__ = ("code",)

    def __init__(self, code: str) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("|", b"|"):
            raise _unsafe("a numpy dtype of more than one byte")


class PlainArray:
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
    if not isinstance(kind, _Type) or not isinstance(raw, bytes):
        raise _unsafe("a numpy array of something else than bytes")
    if not isinstance(shape, tuple) or len(shape) > 2 or not all(type(n) is int for n in shape):
        raise _unsafe("a numpy array of more than two dimensions")
    if math.prod(shape) != len(raw):
        raise _malformed(f"a numpy array of shape {shape} with {len(raw)} bytes")
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

    def __call__(self, kind: object, *_: object) -> PlainArray:
        if not isinstance(kind, _NumpyArray):
            raise _unsafe("a numpy array of an unknown class")
        return PlainArray()


class _Scalar(_Inert):
    __slots__ = ()

    def __call__(self, kind: object, raw: object = None) -> bool:
        code, content = _content(kind, (1,), raw)
        if code != "b1":
            raise _malformed("a number where a bool was expected")
        return content != b"\x00"


class _FromBuffer(_Copies):
    """`numpy.core.numeric._frombuffer`, as protocol 5 stores arrays."""

    __slots__ = ()

    def __call__(self, raw: object, kind: object, shape: object, order: object = "C") -> PlainArray:
        if isinstance(raw, bytearray):
            self.take(len(raw))
            raw = bytes(raw)
        return PlainArray(*_content(kind, shape, raw))


def _names(size: int) -> dict[str, _Inert]:
    """Give what each allowed name stands for while a pickle of `size` bytes is loaded."""
    names: dict[str, _Inert] = {"_codecs encode": _Encode(size), "numpy dtype": _NumpyType()}
    names["numpy ndarray"] = _NumpyArray()
    for core in ("numpy.core", "numpy._core"):  # numpy 2 renamed it
        names[f"{core}.multiarray _reconstruct"] = _Reconstruct()
        names[f"{core}.multiarray scalar"] = _Scalar()
        names[f"{core}.numeric _frombuffer"] = _FromBuffer(size)
    return names


_ALLOWED = frozenset(_names(0))


class _PlainData(pickle.Unpickler):
    """An unpickler whose every name is one of ours; nothing is imported."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self._names = _names(len(data))

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._names[f"{module} {name}"]
        except KeyError:
            raise _unsafe(f"the name {module[:40]}.{name[:40]}") from None

    def persistent_load(self, key: Any) -> NoReturn:
        raise _unsafe("a persistent reference")
