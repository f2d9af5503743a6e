"""A CUDA device that is not there: numbers are real and lie in host memory, storages have a label.

Two modes answer for it. `_Questions` sees what Python asks of tensors: `.device`, `.to`, `.numpy`,
factories. `_Operations` sees every operation, those of backward too, and applies CUDA's rules:
operands on one device, what waits for the device, what is copied from pageable memory, how many
kernels are launched and how many bytes they touch. What breaks a rule raises `Mismatch`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim",
         "unique_consecutive", "repeat_interleave", "equal", "bincount"}  # fmt: skip
FREE = {"view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select",
        "unsqueeze", "squeeze", "detach", "alias", "as_strided", "split", "unbind", "empty",
        "empty_like", "new_empty", "empty_strided", "new_empty_strided", "lift_fresh",
        "_reshape_alias", "unfold", "diagonal", "chunk", "split_with_sizes", "narrow", "set_",
        "view_as", "is_pinned", "_local_scalar_dense", "resize_", "is_same_size"}  # fmt: skip
INDEXED = {
    "index",
    "index_put",
    "index_put_",
    "_index_put_impl_",
}  # their indices may be the host's
TAKING = {"index_select", "index", "gather", "embedding"}  # touch what they give, not the table
PUTTING = {"index_copy_", "index_put_", "index_add_", "scatter_", "_index_put_impl_"}
READS = (torch.Tensor.tolist, torch.Tensor.item, torch.Tensor.__bool__, torch.Tensor.__float__,
         torch.Tensor.__int__, torch.Tensor.__index__)  # fmt: skip
ARRAYS = (torch.Tensor.numpy, torch.Tensor.__array__)
MAKERS = {torch.zeros, torch.ones, torch.empty, torch.full, torch.arange, torch.tensor, torch.rand,
          torch.randn, torch.randint, torch.eye, torch.linspace, torch.randperm}  # fmt: skip
TAKERS = (torch.tensor, torch.as_tensor, torch.asarray)


class Mismatch(RuntimeError):
    """An operation that CUDA would refuse."""


@dataclass
class Ledger:
    """What was seen: by (what, file and function of glint), or by operation."""

    waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    copies: list[tuple[str, int, str]] = field(default_factory=list)  # kind, bytes, where
    launches: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    held: list[Tensor] = field(default_factory=list)  # by another stream than made them

    def clear(self) -> None:
        for one in (self.waits, self.copies, self.launches, self.bytes, self.held):
            one.clear()


@dataclass(frozen=True)
class _Label:
    on_card: bool | None  # None: made inside a formula of backward, where its gradient is
    pinned: bool
    storage: StorageWeakRef  # keeps the key from being given to another storage


BOOK = Ledger()
_labels: dict[int, _Label] = {}
_here = threading.local()


@contextmanager
def _quiet() -> Iterator[None]:
    """Do something that is not the program's."""
    before = getattr(_here, "quiet", False)
    _here.quiet = True
    try:
        with torch._C.DisableTorchFunction():
            yield
    finally:
        _here.quiet = before


def _label(tensor: Tensor) -> _Label | None:
    with _quiet():
        try:
            return _labels.get(tensor.untyped_storage()._cdata)
        except (RuntimeError, NotImplementedError):  # no storage: sparse, meta
            return None


def on_card(tensor: Tensor) -> bool:
    """Return whether a tensor counts as the device's."""
    found = _label(tensor)
    return found is not None and found.on_card is True


def _pinned(tensor: Tensor) -> bool:
    found = _label(tensor)
    return found is not None and found.pinned


def put(tensor: Tensor, card: bool | None, pinned: bool = False) -> Tensor:
    """Label a tensor's storage."""
    with _quiet():
        storage = tensor.untyped_storage()
        _labels[storage._cdata] = _Label(card, pinned, StorageWeakRef(storage))
    if len(_labels) > 100_000:
        for key in [key for key, one in _labels.items() if one.storage.expired()]:
            del _labels[key]
    return tensor


def size(tensor: Tensor) -> int:
    """Return a tensor's bytes."""
    return tensor.numel() * tensor.element_size()


def tensors(tree: Any) -> list[Tensor]:
    """List the tensors in a nest of arguments."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def where() -> str:
    """Name the innermost file and function of glint that is running."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/glint/" in name and "/tests/" not in name:
            return f"{name.rsplit('/glint/', 1)[1]}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


def _transfer(source: Tensor, target: Tensor, non_blocking: bool) -> None:
    """Note a copy between the host and the device."""
    if on_card(target):
        kind = "in, pinned" if _pinned(source) else "in, pageable"
    else:
        kind = "out, pinned" if _pinned(target) else "out, pageable"
        if not (non_blocking and _pinned(target)):
            BOOK.waits["copy out", where()] += 1
    BOOK.copies.append((kind, size(source), where()))


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


class _Operations(TorchDispatchMode):
    """Sees every operation of torch."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(_here, "quiet", False):
            return func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        ins = tensors((args, kwargs))
        device, pin = kwargs.get("device"), bool(kwargs.get("pin_memory"))
        if _is_cuda(device):
            kwargs["device"] = CPU
        if pin:
            kwargs["pin_memory"] = False
        if name in ("is_pinned", "_is_pinned"):
            return _pinned(ins[0])
        if name in ("_to_copy", "copy_"):
            return _copied(func, name, args, kwargs, ins)
        card = any(on_card(one) for one in ins)
        if card:
            _check(name, args, ins)
        out = func(*args, **kwargs)
        here: bool | None = _is_cuda(device) or card
        if not ins and device is not None and not here:
            here = None
        with _quiet():
            known = {one.untyped_storage()._cdata for one in ins}
            made = [one for one in tensors(out) if one.untyped_storage()._cdata not in known]
        for one in made:
            put(one, here, pin)
        if here and name not in FREE:
            _count(name, ins, tensors(out))
        return out


def _check(name: str, args: tuple[Any, ...], ins: list[Tensor]) -> None:
    """Hold the operands of an operation on the device against CUDA's rules."""
    for number, one in enumerate(ins):
        found = _label(one)
        if one.dim() == 0 or (found is not None and found.on_card is not False):
            continue
        if name in INDEXED and number:
            BOOK.copies.append(("in, pageable", size(one), where()))
            continue
        shapes = [(tuple(t.shape), "card" if on_card(t) else "host") for t in ins]
        raise Mismatch(f"{name} of {shapes} in {where()}")
    by_mask = name in INDEXED and any(
        one.dtype in (torch.bool, torch.uint8) for one in tensors(args[1:2])
    )
    if name in WAITS or by_mask:
        BOOK.waits[name, where()] += 1


def _count(name: str, ins: list[Tensor], outs: list[Tensor]) -> None:
    total = sum(size(one) for one in {id(one): one for one in (*ins, *outs)}.values())
    if name in TAKING:
        total = 2 * sum(map(size, outs))
    elif name in PUTTING:
        total = 2 * sum(map(size, ins[1:]))
    BOOK.launches[name] += 1
    BOOK.bytes[name] += total


def _copied(
    func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], ins: list[Tensor]
) -> Any:
    """Do a copy below Python, which keeps each tensor where it is."""
    out = func(*args, **kwargs)
    if name == "copy_":
        target, source = ins[0], ins[1]
        non_blocking = bool(kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
    else:
        target, source, non_blocking = out, ins[0], False
        put(out, on_card(source))
    if on_card(source) != on_card(target):
        _transfer(source, target, non_blocking)
    elif on_card(target):
        _count(name, [source], [target])
    return out


class _Questions(TorchFunctionMode):
    """Sees what Python asks of tensors."""

    PLACE: ClassVar[dict[Any, Callable[[bool], Any]]] = {
        torch.Tensor.device.__get__: lambda card: CUDA if card else CPU,
        torch.Tensor.is_cuda.__get__: lambda card: card,
        torch.Tensor.is_cpu.__get__: lambda card: not card,
        torch.Tensor.get_device: lambda card: 0 if card else -1,
    }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(_here, "quiet", False):
            return func(*args, **kwargs)
        if func in self.PLACE:
            return self.PLACE[func](on_card(args[0]))
        if func is torch.Tensor.is_pinned:
            return _pinned(args[0])
        if func in ARRAYS and on_card(args[0]):
            raise Mismatch(f"numpy of a tensor on the device in {where()}")
        if func in READS:
            if on_card(args[0]):
                BOOK.waits["read", where()] += 1
            with _quiet():
                return func(*args, **kwargs)
        if func in (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda):
            return _moved(func, *args, **kwargs)
        if func is torch.Tensor.backward:
            kwargs["grad_tensors"] = kwargs.pop("gradient", args[1] if len(args) > 1 else None)
            with self:
                return torch.autograd.backward(args[0], **kwargs)
        if func is torch.Tensor.__deepcopy__:
            if id(args[0]) in args[1]:
                return args[1][id(args[0])]
            with _quiet():
                return put(func(*args, **kwargs), on_card(args[0]))
        return _made(func, args, kwargs)


def _made(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Do what may make tensors, where it was asked to."""
    device, pin = kwargs.get("device"), bool(kwargs.pop("pin_memory", False))
    if _is_cuda(device):
        kwargs["device"] = CPU
        if func in TAKERS and isinstance(args[0], Tensor):
            kwargs.pop("device")
            return _moved(torch.Tensor.to, func(*args, **kwargs), CUDA)
        with _quiet():
            out = func(*args, **kwargs)
            out = out.clone() if func in TAKERS and func is not torch.tensor else out
        for one in tensors(out):
            put(one, True)
            BOOK.launches[getattr(func, "__name__", "made")] += 1
            BOOK.bytes["made"] += size(one)
        if func in TAKERS:
            BOOK.copies.append(("in, pageable", size(out), where()))
        return out
    host = device is not None and torch.device(device).type == "cpu" and func not in TAKERS
    if pin or host:
        with _quiet():
            out = func(*args, **kwargs)
    else:
        out = func(*args, **kwargs)
    if pin or host or (device is None and func in MAKERS):
        for one in tensors(out):
            put(one, False, pin)
    return out


def _moved(func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Do `to`, `cpu` or `cuda`."""
    layout, copy = kwargs.pop("memory_format", None), kwargs.pop("copy", False)
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    device: torch.device | None
    dtype: torch.dtype | None = None
    if func is torch.Tensor.cpu:
        device, late = CPU, False
    elif func is torch.Tensor.cuda:
        device, late = CUDA, bool(kwargs.get("non_blocking"))
    elif args and isinstance(args[0], Tensor):
        device, dtype, late = args[0].device, args[0].dtype, False
    else:
        device, dtype, late, _ = torch._C._nn._parse_to(*args, **kwargs)
    extra = {} if layout is None else {"memory_format": layout}
    before = on_card(tensor)
    wanted = before if device is None else device.type == "cuda"
    if wanted == before:
        return torch.Tensor.to(tensor, dtype=dtype or tensor.dtype, copy=copy, **extra)
    _here.quiet = True  # differentiable: so not within DisableTorchFunction
    try:
        out = torch.Tensor.to(tensor, dtype=dtype or tensor.dtype, copy=True, **extra)
    finally:
        _here.quiet = False
    put(out, wanted)
    _transfer(tensor, out, late)
    return out


class _Event:
    """A moment; the device is never behind."""

    def __init__(self, **_: Any) -> None:
        self.at = 0.0

    def record(self, stream: Any = None) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: _Event) -> float:
        return 1000 * (other.at - self.at)


class _Stream:
    """A queue of work; `waited` lists the moments that a stream waited for."""

    waited: ClassVar[list[_Event]] = []

    def __init__(self, *_: Any) -> None: ...

    def record_event(self) -> _Event:
        return _Event()

    def wait_event(self, event: _Event) -> None:
        self.waited.append(event)


class _Autocast(torch.autocast):
    def __init__(
        self, device_type: str, dtype: torch.dtype | None = None, enabled: bool = True,
        cache_enabled: bool | None = None,
    ) -> None:  # fmt: skip
        super().__init__("cpu", dtype if enabled else None, enabled, cache_enabled)


def _grouped(real: Callable[..., Any]) -> Callable[..., Any]:
    def grouped(lists: Any, with_indices: bool = False) -> Any:
        def place(found: Any) -> torch.device:
            first = next((one for one in found[0][0] if one is not None), None)
            return CUDA if first is not None and on_card(first) else CPU

        found = real(lists, with_indices)
        return {(place(value), dtype): value for (_, dtype), value in found.items()}

    return grouped


def _patches(capability: tuple[int, int]) -> Iterator[tuple[Any, str, Any]]:
    cuda: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "set_device": lambda device: None,
        "current_device": lambda: 0,
        "synchronize": lambda *_: BOOK.waits.update([("synchronize", where())]),
        "Event": _Event,
        "Stream": _Stream,
        "current_stream": _Stream,
        "stream": lambda stream: nullcontext(),
        "get_device_capability": lambda *_: capability,
        "is_bf16_supported": lambda *_, **__: True,
        "manual_seed_all": lambda seed: None,
        "_is_in_bad_fork": lambda: False,
        "device": lambda device: nullcontext(),
    }
    for name, value in cuda.items():
        yield torch.cuda, name, value
    yield torch.Tensor, "record_stream", lambda tensor, stream: BOOK.held.append(tensor)
    yield torch.cuda.amp.common, "amp_definitely_not_available", lambda: False
    yield torch, "autocast", _Autocast
    yield torch.amp, "autocast", _Autocast
    enabled = torch.is_autocast_enabled
    yield torch, "is_autocast_enabled", lambda device=None: enabled("cpu")
    empty = torch.empty

    def pinnable(*args: Any, **kwargs: Any) -> Tensor:  # a loader's thread has no mode
        if not kwargs.pop("pin_memory", False):
            return empty(*args, **kwargs)
        with _quiet():
            return put(empty(*args, **kwargs), False, True)

    yield torch, "empty", pinnable
    name = "_group_tensors_by_device_and_dtype"
    real = getattr(_foreach_utils, name)
    grouped = _grouped(real)
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("torch") and vars(module).get(name) is real:
            yield module, name, grouped


@contextmanager
def pretended(capability: tuple[int, int] = (9, 0)) -> Iterator[Ledger]:
    """Have a card while the block runs; give the ledger, empty at the start."""
    before = []
    BOOK.clear()
    try:
        for owner, name, value in _patches(capability):
            before.append((owner, name, getattr(owner, name)))
            setattr(owner, name, value)
        with _Questions(), _Operations():
            yield BOOK
    finally:
        for owner, name, value in reversed(before):
            setattr(owner, name, value)
        _labels.clear()
