"""Pickles of plain data, read without running a line of what is in them.

An unpickler that imports nothing builds bytes, text, bool, small whole numbers, lists, tuples and
numpy arrays of numbers. One look at the opcodes comes first: alone, it takes whatever memory a few
bytes ask for.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from glint.errors import InputError, UnsafeError

PLAIN = (
    "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 BINUNICODE SHORT_BINUNICODE BINUNICODE8 UNICODE "
    "STRING BINSTRING SHORT_BINSTRING BININT BININT1 BININT2 LONG1 INT LONG NONE NEWTRUE NEWFALSE "
    "EMPTY_LIST EMPTY_TUPLE LIST TUPLE TUPLE1 TUPLE2 TUPLE3 MARK APPEND APPENDS "
    "PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET "
    "GLOBAL STACK_GLOBAL REDUCE BUILD PROTO FRAME STOP"
)
OPCODES = frozenset(PLAIN.split())


def load(data: bytes, where: str, *, max_item: int) -> object:
    """Load a pickle of Python 2 or 3; text of Python 2 comes as bytes.

    max_item: largest string of bytes or text. Raises UnsafeError GL0801 for a pickle that asks for
    more than plain data or than its size allows, InputError GL0802 for one that is cut short.
    """
    try:
        unpickler = _PlainData(data)
        _require_modest(data, unpickler, max_item)
        return unpickler.load()
    except UnsafeError as error:
        raise UnsafeError("GL0801", error.what, where=where, hint=error.hint) from None
    except Exception as error:  # a pickle can fail in any way; none of them ran its code
        text = f"not a pickle, or cut short ({type(error).__name__}: {error})"[:200]
        hint = "get the file again, or rebuild it"
        raise InputError("GL0802", text, where=where, hint=hint) from None


def _unsafe(what: str) -> UnsafeError:
    hint = "nothing of it was run; get the pack from its publisher, or rebuild it"
    return UnsafeError("GL0801", f"expected plain images and bools, found {what}", hint=hint)


def _require_modest(data: bytes, unpickler: _PlainData, max_item: int) -> None:
    """Refuse opcodes that could build more than plain data of about the pickle's own size."""
    allowed = (1 << 16) + len(data) // 24  # an object costs some 50 bytes: at most twice the file
    argument: Any
    for count, (opcode, argument, at) in enumerate(pickletools.genops(data), 1):
        name = opcode.name
        if name not in OPCODES or count > allowed:
            raise _unsafe(f"opcode {name} at byte {at}, the {count}th")
        if name == "GLOBAL":
            unpickler.find_class(*argument.split(" ", 1))
        elif name == "FRAME" and argument > len(data):
            raise EOFError(f"a frame of {argument} bytes")
        elif name.endswith("PUT") and argument > count:
            raise _unsafe(f"memo index {argument} at byte {at}")
        elif isinstance(argument, int):
            if not -(1 << 31) <= argument < 1 << 32:
                raise _unsafe(f"a number of over 32 bits at byte {at}")
        elif argument is not None and len(argument) > max_item:
            raise _unsafe(f"an item of {len(argument)} bytes at byte {at}")


class _PlainData(pickle.Unpickler):
    """An unpickler for which every name is one of ours."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        copies = _Copies(len(data))
        self._names: dict[str, Callable[..., object]] = {
            "_codecs encode": copies.encode,
            "builtins bytearray": copies.bytearray,
            "__builtin__ bytearray": copies.bytearray,
            "numpy dtype": _Type,
            "numpy ndarray": _ndarray,
            "numpy.core.multiarray _reconstruct": _reconstruct,
            "numpy.core.multiarray scalar": _scalar,
            "numpy.core.numeric _frombuffer": copies.frombuffer,
        }

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for an allowed name. Raises UnsafeError GL0801 for any other."""
        plain = module.replace("numpy._core", "numpy.core")  # numpy 2 renamed it
        if f"{plain} {name}" not in self._names:
            raise _unsafe(f"the name {f'{module} {name}'[:80]!r}")
        return _Name(self._names[f"{plain} {name}"])


class _Name:
    """What a name stands for: it may be called, and never changed."""

    def __init__(self, function: Callable[..., object]) -> None:
        self.function = function

    def __call__(self, *arguments: object) -> object:
        return self.function(*arguments)

    def __setstate__(self, state: object) -> NoReturn:
        raise _unsafe("a change to something that is not an array")


class _Copies:
    """Calls that make bytes; all of them together at most twice what the file has."""

    def __init__(self, size: int) -> None:
        self.left = 2 * size  # text, and the bytes that are made of it

    def _counted(self, made: bytes) -> bytes:
        self.left -= len(made)
        if self.left < 0:
            raise _unsafe("the same bytes made over and over")
        return made

    def encode(self, text: object, encoding: object = "latin1") -> bytes:
        """Return bytes as protocols 0 to 2 store them: latin-1 text."""
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1", "latin-1"):
            raise _unsafe("text in another encoding than latin1")
        return self._counted(text.encode("latin1"))

    def bytearray(self, text: object = b"", encoding: object = "latin-1") -> bytes:
        """Return the bytes of a bytearray, as protocols 0 to 4 store it."""
        return self._counted(text) if isinstance(text, bytes) else self.encode(text, encoding)

    def frombuffer(self, raw: object, kind: object, shape: object, _: object = "C") -> PlainArray:
        """Return an array as protocol 5 stores it."""
        own = self._counted(bytes(raw)) if isinstance(raw, bytearray) else raw
        return PlainArray().fill(kind, shape, own)


CODES = ("u1", "b1", "i1", "i2", "i4", "i8", "u2", "u4", "u8", "f4", "f8")


class _Type:
    """A numpy dtype; only bytes, bools and plain numbers are let through."""

    order = "<"

    def __init__(self, code: object = None, *_: object) -> None:
        name = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(name, str) or name.lstrip("|<>") not in CODES:
            raise _unsafe("a numpy array of something else than bytes, bools or numbers")
        self.code = name.lstrip("|<>")

    def __setstate__(self, state: object) -> None:
        orders = ("|", "<", ">", b"|", b"<", b">")
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in orders:
            raise _unsafe("a numpy dtype of an unknown order of bytes")
        if any(part is not None for part in state[2:5]):
            raise _unsafe("a numpy dtype of several fields")
        self.order = ">" if state[1] in (">", b">") else "<"


class PlainArray:
    """An array of bytes, bools or numbers (code u1, b1, i8...), as raw bytes."""

    code, order, raw = "", "<", b""

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return len(self.raw) // int(self.code[1])

    def numbers(self) -> list[int | float]:
        """Return its numbers."""
        made: list[int | float] = np.frombuffer(self.raw, self.order + self.code).tolist()
        return made

    def fill(self, kind: object, shape: object, raw: object) -> PlainArray:
        """Take type, shape and content. Raises UnsafeError GL0801 for any others than ours."""
        if self.code or not isinstance(kind, _Type) or not isinstance(raw, bytes):
            raise _unsafe("a numpy array of something else than bytes")
        if not isinstance(shape, tuple) or len(shape) > 2 or any(type(n) is not int for n in shape):
            raise _unsafe("a numpy array of more than two dimensions")
        if math.prod(shape) * int(kind.code[1]) != len(raw):
            raise ValueError(f"a numpy array of shape {shape} with {len(raw)} bytes")
        self.code, self.order, self.raw = kind.code, kind.order, raw
        return self

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise _unsafe("a numpy array in an unknown form")
        self.fill(state[2], state[1], state[4])


def _ndarray(*_: object) -> NoReturn:
    raise _unsafe("a call of numpy.ndarray")


def _reconstruct(kind: object, *_: object) -> PlainArray:
    if not isinstance(kind, _Name) or kind.function is not _ndarray:
        raise _unsafe("a numpy array of an unknown class")
    return PlainArray()


def _scalar(kind: object, raw: object = None) -> int | float:
    return PlainArray().fill(kind, (1,), raw).numbers()[0]
