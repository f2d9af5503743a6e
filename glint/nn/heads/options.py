"""The options of each kind of head: their defaults, bounds and meaning, declared here alone.

A recipe's `[head]` (`train.recipe`), `glint plan` and the estimate of memory (`train.memory`) read
these declarations. No torch: describing a head is instant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, get_args, get_type_hints

from glint.errors import UsageError

Kind = Literal["partial_fc", "class_pool", "class_queue"]
Rule = Literal["none", "v1_stale", "lazy_decay", "dense_exact", "adamw"]
Gemm = Literal["float32", "tf32", "bf16"]
Storage = Literal["float32", "bf16"]
Kernels = Literal["auto", "torch", "triton"]
RULES: tuple[str, ...] = get_args(Rule)
Check = tuple[str, Any, bool, str]  # name, value, whether it is good, what is expected


def _about(meaning: str, *, key: str = "", **bounds: Any) -> dict[str, Any]:
    """Describe an option. key: its name in recipes, where that differs; bounds: as pydantic's."""
    return {"help": meaning, "key": key, "bounds": bounds}


_SCALE = _about("What cosines are multiplied by.", gt=0, allow_inf_nan=False)
_SLOTS = _about("Slots of a head without a table.", ge=1)


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """What every kind of head reads."""

    scale: float = field(default=64.0, metadata=_SCALE)
    threshold: float = field(
        default=0.0,
        metadata=_about("Negatives with a larger cosine are left out; 0 = none are.", ge=0, le=1),
    )
    block: int = field(
        default=1024, metadata=_about("Classes per block of the streamed softmax.", ge=1)
    )
    gemm: Gemm = field(default="float32", metadata=_about("What products round their operands to."))

    def check(self, classes: int, dim: int, dtype: object) -> None:
        """Raise UsageError (GL0002) for an option out of range; dtype: torch's, computed in."""
        single = str(dtype) == "torch.float32"
        checks: list[Check] = [
            ("classes", classes, classes >= 1, "at least 1"),
            ("dim", dim, dim >= 1, "at least 1"),
            ("dtype", dtype, single or str(dtype) == "torch.float64", "float32 or float64"),
        ]
        for one in fields(self):
            checks.append((key_of(one), value := getattr(self, one.name), *fits(one, value)))
            if one.name in ("gemm", "storage") and not single:
                checks.append((one.name, value, value == "float32", f"float32 in {dtype}"))
        refuse(checks, where="head")


@dataclass(frozen=True, kw_only=True)
class PartialFCOptions(HeadOptions):
    """What a head with a table of centres reads besides; momentum of rule "adamw" is beta1."""

    rate: float = field(
        default=1.0, metadata=_about("Share of classes that play at a step.", ge=0, le=1)
    )
    hard_ratio: float = field(
        default=0.0,
        metadata=_about(
            "Share of negatives that are near the batch's classes.", key="hard", ge=0, le=1
        ),
    )
    rule: Rule = field(default="none", metadata=_about("How centres move."))
    momentum: float = field(default=0.9, metadata=_about("Momentum of centres."))
    weight_decay: float = field(default=5e-4, metadata=_about("Weight decay of centres."))
    storage: Storage = field(
        default="float32", metadata=_about("How centres and their state are kept.")
    )
    kernels: Kernels = field(
        default="auto", metadata=_about("Who computes: torch's operations or Triton's kernels.")
    )
    keep: int = field(
        default=64 << 20,
        metadata=_about("Bytes of exponentials held instead of computed twice.", ge=0),
    )


@dataclass(frozen=True, kw_only=True)
class ClassPoolOptions(HeadOptions):
    """What a pool of features reads besides."""

    scale: float = field(default=32.0, metadata=_SCALE)
    slots: int = field(default=0, metadata=_SLOTS)

    @property
    def nearest(self) -> int:
        """Slots that a sample without one is pushed from."""
        return min(max(int(0.0002 * self.slots), 3), 10)


@dataclass(frozen=True, kw_only=True)
class ClassQueueOptions(HeadOptions):
    """What a queue of class rows reads besides."""

    scale: float = field(default=50.0, metadata=_SCALE)
    slots: int = field(default=0, metadata=_SLOTS)
    gallery: int = field(
        default=1, metadata=_about("Of a class_queue: images that make a sample's class row.", ge=1)
    )


AnyOptions = PartialFCOptions | ClassPoolOptions | ClassQueueOptions
KINDS: dict[str, type[AnyOptions]] = {
    "partial_fc": PartialFCOptions,
    "class_pool": ClassPoolOptions,
    "class_queue": ClassQueueOptions,
}


def key_of(option: Field[Any]) -> str:
    """Return what recipes call an option."""
    return option.metadata["key"] or option.name


def keys(kind: str) -> set[str]:
    """Return the keys of the options that a kind of head reads."""
    return {key_of(option) for option in fields(KINDS[kind])}


# every option by its key; where kinds differ in a default, partial_fc's
OPTIONS: dict[str, Field[Any]] = {
    key_of(option): option for kind in reversed(KINDS.values()) for option in fields(kind)
}
_CHOICES = {
    name: get_args(hint)
    for kind in KINDS.values()
    for name, hint in get_type_hints(kind).items()
    if get_args(hint)
}


def chosen(kind: str, values: Mapping[str, Any]) -> AnyOptions:
    """Make a kind's options of values by key; what this kind does not read is passed over."""
    read = {one.name: values[key_of(one)] for one in fields(KINDS[kind]) if key_of(one) in values}
    return KINDS[kind](**read)


def fits(option: Field[Any], value: Any) -> tuple[bool, str]:
    """Return whether a value is one that an option takes, and what it takes, in words."""
    if choices := _CHOICES.get(option.name):
        return value in choices, " or ".join(choices)
    bounds = option.metadata["bounds"]
    if "gt" in bounds:
        return value > bounds["gt"], f"above {bounds['gt']}"
    if "le" in bounds:
        return bounds["ge"] <= value <= bounds["le"], f"{bounds['ge']} to {bounds['le']}"
    least = bounds.get("ge")
    return least is None or value >= least, f"at least {least}"


def refuse(checks: Iterable[Check], *, where: str) -> None:
    """Raise UsageError (GL0002) for the first check that is not good."""
    for name, value, good, expected in checks:
        if not good:
            raise UsageError("GL0002", f"{name} is {value!r}, expected {expected}", where=where)
