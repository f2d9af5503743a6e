"""Published weights of other programs as a checkpoint: read without running a line of them."""

from __future__ import annotations

import pickle
import pickletools
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import torch
from torch import Tensor, nn

from glint.errors import BusyError, GlintError, InputError, UnsafeError, UsageError
from glint.files import atomic, reads
from glint.log import logger
from glint.models import checkpoint, layouts
from glint.models.layouts import COUNTER
from glint.nn import backbones
from glint.nn.names import ONNX
from glint.results import models as results

# arcface_torch's names; glint's own are taken too
NAMES = {
    **{f"r{depth}": f"iresnet{depth}" for depth in (18, 34, 50, 100, 200)},
    "vit_t_dp005_mask0": "vit_t",
    "vit_s_dp005_mask_0": "vit_s",
    "vit_b_dp005_mask_005": "vit_b",
    "vit_l_dp005_mask_005": "vit_l",
}
INSIDE = (  # of whole checkpoints
    "state_dict_backbone", "state_dict", "model_state_dict", "backbone", "model", "net", "network",
    "backbone_state_dict", "net_state_dict", "model_state", "ema_state_dict", "state_dict_ema",
    "model_ema", "ema", "params", "weights", "module", "encoder",
)  # fmt: skip
SHOWN = 5  # names and shapes listed in a message
LEGACY = 4  # pickles at the start of a file of torch before 1.6; bare numbers follow
# opcodes that fetch a name, and the names that a file of tensors fetches
CALLS = {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"}
TENSORS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
    r"|torch(\.cuda)? \w+Storage|torch\.nn\.parameter Parameter|torch (Size|device|[a-z]+\d+)"
)
# objects that training scripts keep beside tensors: they are left out, and never made
BESIDE = re.compile(
    r"argparse Namespace|types SimpleNamespace|numpy(\._?core)?(\.multiarray)? \w+|_codecs encode"
    r"|pathlib \w+|collections (defaultdict|Counter)|__builtin__ (set|complex|slice|bytearray)"
    r"|builtins (set|complex|slice|bytearray)|datetime \w+|easydict EasyDict|yacs\.config CfgNode"
    r"|omegaconf\.[\w.]+ \w+|(pytorch_)?lightning[\w.]* \w+"
)


def import_weights(
    weights: str | Path,
    backbone: str,
    out: str | Path,
    *,
    embedding: int = 512,
    options: Mapping[str, Any] | None = None,
    inside: str = "",
) -> results.Import:
    """Write the weights of `backbone` in a .pt or .safetensors file as a run with one checkpoint.

    Those of an ONNX file as well, which brings its own net.

    Numbers become float32; one prefix that all names share goes, a head beside the net is left out.
    backbone: "" where the file is in a known layout (`layouts`), which tells its net too.
    inside: the place in the file of the state to take (`ema.shadow`), where it holds several.
    `out` must not exist or be empty.
    Returns {checkpoint, backbone, embedding, parameters, tensors, dtype, source, sha256}.
    Raises UsageError GL0001/GL0002, BusyError GL0004/GL0005, UnsafeError GL0801 for a pickle that
    asks for more than tensors, InputError GL0401 for a file that is damaged or of another net.
    """
    weights, out = Path(weights), Path(out)
    _require_empty(out)
    if weights.suffix.lower() == ".onnx" and weights.is_file():
        return _onnx(weights, backbone, out, inside)
    layout, read = "", _read(weights, inside) if weights.is_file() else {}
    if not backbone and read:
        known = layouts.recognise(read)
        if known is None:
            raise _other("the file is in no known layout", weights)
        layout, embedding = known[0].name, known[1]
        backbone, options = known[0].backbone, known[0].options
        read = known[0].translated(read)
        logger.info("%s: the layout of %s, %d numbers per face", weights.name, layout, embedding)
    name, _, found, state = _taken(weights, read, backbone, embedding, options)
    kinds = sorted({str(t.dtype).removeprefix("torch.") for t in found.values()
                    if t.is_floating_point()})  # fmt: skip
    made: dict[str, Any] = {"name": name, "embedding": embedding, "options": dict(options or {})}
    return _write(weights, out, made, state, " ".join(kinds), layout)


def _onnx(weights: Path, backbone: str, out: Path, inside: str) -> results.Import:
    """Write the net of an ONNX file."""
    from glint.models import import_onnx

    if backbone not in ("", ONNX) or inside:
        raise UsageError(
            "GL0002", "an ONNX file brings its own net", where="--backbone, --inside",
            hint="leave them out; a student learns from it with teacher.model, or glint tune",
        )  # fmt: skip
    made, state = import_onnx.read(weights)
    return _write(weights, out, made, state, "float32", "ONNX")


def _write(
    weights: Path, out: Path, made: dict[str, Any], state: dict[str, Tensor], dtype: str,
    layout: str,
) -> results.Import:  # fmt: skip
    """Write a net as a run with one checkpoint."""
    source = {"name": weights.name, "sha256": checkpoint.sha256(weights), "dtype": dtype}
    atomic.own_dir(out / "_glint")
    with atomic.lock(out / "_glint" / "lock"):
        _require_empty(out)  # nobody else's either, by now
        path = checkpoint.save(
            out / "checkpoints", 0, backbone=state, optimizer={}, head=(0, 0, {}),
            state={"backbone": made, "imported": source}, keep=1,
        )  # fmt: skip
    with torch.device("meta"):
        net = backbones.create(made["name"], made["embedding"], **made["options"])
    return results.Import(
        checkpoint=str(path), **made, parameters=sum(p.numel() for p in net.parameters()),
        tensors=len(state), source=results.Weights(**source), layout=layout,
    )  # fmt: skip


def read_net(weights: Path, backbone: str, embedding: int) -> nn.Module:
    """Build `backbone` with the weights of a .pt or .safetensors file: float32, on the CPU.

    Raises what `import_weights` raises.
    """
    read = _read(weights, "") if weights.is_file() else {}
    _, net, _, state = _taken(weights, read, backbone, embedding)
    net.load_state_dict(state, assign=True)
    return net


def fill(net: nn.Module, weights: str | Path, what: str) -> None:
    """Load a .pt or .safetensors file into a net that is there, all of its tensors or none.

    What the file has besides, a classifier say, is left out with a warning. Raises what
    `import_weights` raises: InputError GL0401 where a tensor is missing or of another shape.
    """
    weights = Path(weights)
    if not weights.is_file():
        raise UsageError("GL0001", "no such file of weights", where=str(weights))
    found = _renamed(_read(weights, ""), net.state_dict(), weights)
    net.load_state_dict(_fitted(found, net, what, weights))


def _taken(
    weights: Path, read: dict[str, Tensor], backbone: str, embedding: int,
    options: Mapping[str, Any] | None = None,
) -> tuple[str, nn.Module, dict[str, Tensor], dict[str, Tensor]]:  # fmt: skip
    """Return glint's name of a net, the net without data, the file's tensors, the net's state."""
    if not weights.is_file():
        raise UsageError("GL0001", "no such file of weights", where=str(weights))
    name = NAMES.get(backbone, backbone)
    with torch.device("meta"):
        net = backbones.create(name, embedding, **(options or {}))
    found = _renamed(read, net.state_dict(), weights)
    return name, net, found, _fitted(found, net, f"{name} with embedding {embedding}", weights)


def _require_empty(out: Path) -> None:
    """Refuse a place that holds anything but what a broken import left."""
    if out.exists() and not out.is_dir():
        raise BusyError("GL0004", "is a file, expected a folder or nothing", where=str(out))
    left, own = out / "checkpoints", out / "_glint"
    inside = [p for p in out.iterdir() if p not in (left, own)] if out.is_dir() else []
    inside += [p for p in left.iterdir() if p.suffix != ".partial"] if left.is_dir() else []
    inside += [p for p in own.iterdir() if p.name != "lock"] if own.is_dir() else []
    if inside:
        what = f"the folder is not empty, it holds {inside[0].name}"
        raise BusyError("GL0004", what, where=str(out), hint="name a new folder")


def _read(path: Path, inside: str) -> dict[str, Tensor]:
    """Load a file of tensors; a pickle may hold nothing but them."""
    if why := reads.stand_in(path):
        raise _damaged(why, path)
    try:
        if path.suffix == ".safetensors":
            return _named(checkpoint.read_tensors(path), path, inside)
        with path.open("rb") as file:
            more = _require_tensors(file, path)
        if not more:
            return _named(torch.load(path, map_location="cpu", weights_only=True), path, inside)
        logger.info("%s: beside the tensors, not read: %s", path.name, ", ".join(sorted(more)))
        inert: Any = ModuleType("inert")
        inert.Unpickler, inert.load = _Inert, lambda file, **_: _Inert(file).load()
        state = torch.load(path, map_location="cpu", weights_only=False, pickle_module=inert)
        try:
            return _named(state, path, inside)
        except InputError:  # then these stand where tensors should
            raise _unsafe(min(more), path) from None
    except GlintError:
        raise
    except Exception as error:  # a file can be damaged in any way; none of it ran code
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _damaged(text[:160], path) from None


class _Nothing:
    """Stands for an object beside the tensors: whatever is done to it does nothing."""

    def __init__(self, *_: object, **__: object) -> None: ...
    def __setstate__(self, _: object) -> None: ...
    def __setitem__(self, _: object, __: object) -> None: ...
    def append(self, _: object) -> None: ...
    def extend(self, _: object) -> None: ...


class _Inert(pickle.Unpickler):
    """An unpickler that knows tensors, and for which `BESIDE` are nothing."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name. Raises UnsafeError GL0801."""
        if BESIDE.fullmatch(f"{module} {name}"):
            return _Nothing
        if TENSORS.fullmatch(f"{module} {name}"):
            return super().find_class(module, name)
        raise UnsafeError("GL0801", f"expected tensors and their names, found {module} {name}")


def _require_tensors(file: IO[bytes], path: Path) -> set[str]:
    """Refuse pickles that name more than tensors, and archives that unpack to more than they are.

    Returns the names of harmless objects beside the tensors, which are not to be made.
    torch's reader runs no code either, but lets through what makes memory out of nothing
    (`torch.Tensor(n)`, `_codecs.encode` over and over) or tensors that no net holds (sparse, fp8).
    """
    pickles: list[IO[bytes]] = [file] * LEGACY
    if file.read(4) == b"PK\x03\x04":
        archive = zipfile.ZipFile(file)
        members = archive.infolist()
        if any("/code/" in m.filename or m.filename.endswith("/constants.pkl") for m in members):
            hint = "where it was made: torch.save(torch.jit.load(FILE).state_dict(), 'net.pth')"
            what = "a TorchScript program, whose code is not run here"
            raise InputError("GL0401", what, where=str(path), hint=hint)
        inner = [m.filename for m in members if m.filename.endswith((".pth", ".pt", ".ckpt"))]
        if inner and not any(m.filename.endswith(".pkl") for m in members):
            hint = f"unzip {path}"
            raise InputError("GL0401", f"a zip that holds {inner[0]}", where=str(path), hint=hint)
        packed = any(m.compress_type != zipfile.ZIP_STORED for m in members)
        if packed or sum(m.file_size for m in members) > path.stat().st_size:
            raise _damaged("its members are packed or overlap", path)
        if flipped := archive.testzip():  # torch does not look at checksums
            raise _damaged(f"{flipped} does not match its checksum", path)
        pickles = [archive.open(m) for m in members if m.filename.endswith(".pkl")]
    else:
        file.seek(0)
    beside = set[str]()
    for opcode, argument, _ in chain.from_iterable(map(pickletools.genops, pickles)):
        name = str(argument) if opcode.name == "GLOBAL" else opcode.name
        if opcode.name in CALLS and BESIDE.fullmatch(name):
            beside.add(name.replace(" ", "."))
        elif opcode.name in CALLS and not TENSORS.fullmatch(name):
            raise _unsafe(name, path)
    return beside


def _named(whole: object, path: Path, inside: str) -> dict[str, Tensor]:
    """Return the tensors of a state dict, or of that inside a whole checkpoint, by name.

    Of several states one is taken, and the others are named in the log.
    """
    found, taken = whole, [part for part in inside.split(".") if part]
    for part in taken:
        if not isinstance(found, Mapping) or part not in found:
            there = ", ".join(map(str, found)) if isinstance(found, Mapping) else "tensors"
            what = f"the file has no {inside}; there is {there[:200]}"
            raise UsageError("GL0002", what, where="--inside")
        found = found[part]
    while isinstance(found, Mapping) and not any(isinstance(v, Tensor) for v in found.values()):
        parts = {key: one for key, one in found.items() if isinstance(one, Mapping)}
        key = next((key for key in (*INSIDE, *parts) if key in parts), None)
        if key is None or (key not in INSIDE and len(parts) > 1):
            break
        found, taken = parts[key], [*taken, str(key)]
    if not isinstance(found, Mapping) or not found:
        raise _other(f"expected tensors by name, found {type(found).__name__}", path)
    state = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    if not state or not all(isinstance(name, str) for name in state):
        some = ", ".join(
            f"{name!r}: {type(value).__name__}" for name, value in [*found.items()][:5]
        )
        raise _other(f"expected tensors by name, found {some}", path)
    if not inside and (others := [*_others(whole, [*state.values()])]):
        text = "%s: taken is %s; another state of such a net was left: %s (--inside takes it)"
        logger.warning(text, path.name, ".".join(taken) or "the top", ", ".join(others[:SHOWN]))
    return state


def _others(found: object, taken: list[Tensor], at: str = "") -> Iterator[str]:
    """Give the places of other states: half of the tensors taken by their shapes, not they."""
    found = dict(enumerate(found)) if isinstance(found, (list, tuple)) else found
    tensors = list[Tensor]()
    for key, value in found.items() if isinstance(found, Mapping) else ():
        tensors += [value] if isinstance(value, Tensor) else []
        yield from _others(value, taken, f"{at}.{key}" if at else str(key))
    common = Counter(t.shape for t in tensors) & Counter(t.shape for t in taken)
    if 2 * common.total() >= len(taken) and not (
        len(tensors) == len(taken)
        and all(a.data_ptr() == b.data_ptr() for a, b in zip(tensors, taken))
    ):
        yield at or "the top"


def _renamed(found: dict[str, Tensor], own: Iterable[str], path: Path) -> dict[str, Tensor]:
    """Return the tensors by the names of the net: one prefix that its names share goes.

    What stands beside the net (a head, say) is left out, with a line of the log. Raises InputError
    GL0401 where the net is there under two prefixes.
    """
    known, names = {*own}, [name for name in own if not name.endswith(COUNTER)]
    count: dict[str, int] = {}
    for name in found:
        parts = name.split(".")
        for at in range(len(parts)):
            if (rest := ".".join(parts[at:])) in known and not rest.endswith(COUNTER):
                prefix = name[: len(name) - len(rest)]
                count[prefix] = count.get(prefix, 0) + 1
                break
    best = max(count, key=lambda p: (count[p], -len(p)), default="")
    if count.get(best, 0) < len(names):
        return {name.removeprefix(best): value for name, value in found.items()}
    for prefix in count:
        twins = [f"{prefix}{name}" for name in names if f"{prefix}{name}" in found]
        if prefix != best and twins:
            name = twins[0][len(prefix) :]
            raise _other(f"two tensors are called {name}, one of them {twins[0]}", path)
    taken = {f"{best}{name}": name for name in own if f"{best}{name}" in found}
    if beside := [name for name in found if name not in taken]:
        some = ", ".join(beside[:SHOWN]) + (", ..." if beside[SHOWN:] else "")
        logger.warning("%s: left out, no part of the net: %s", path.name, some)
    if best:
        logger.info("%s: the net stands under %s", path.name, best)
    return {name: found[full] for full, name in taken.items()}


def _fitted(found: dict[str, Tensor], net: nn.Module, what: str, path: Path) -> dict[str, Tensor]:
    """Return the net's whole state in its own types.

    Shapes are compared before anything is copied: a tensor may claim any size.
    Raises InputError GL0401 naming what is missing, unexpected, of another shape or not finite.
    """
    own = net.state_dict()
    faults = {
        "missing": [n for n in own if n not in found and not n.endswith(COUNTER)],
        "unexpected": [n for n in found if n not in own],
        "of another shape": [
            f"{n} {tuple(found[n].shape)} instead of {tuple(own[n].shape)}"
            for n in own
            if n in found and found[n].shape != own[n].shape
        ],
    }
    wrong = "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:SHOWN])}" + (", ..." if names[SHOWN:] else "")
        for kind, names in faults.items()
        if names
    )
    if wrong:
        raise _other(f"the weights are not those of {what}: {wrong}", path)
    state = {}
    for name, like in own.items():
        value = found.get(name, torch.zeros((), dtype=like.dtype))
        same_kind = value.is_floating_point() == like.is_floating_point()
        if not same_kind or not bool(value.isfinite().all()):
            raise _other(f"{name} is {value.dtype} or holds numbers that are not finite", path)
        state[name] = value.to(like.dtype, copy=True).contiguous()
        if not bool(state[name].isfinite().all()):
            raise _other(f"{name} holds numbers too large for {like.dtype}", path)
    return state


def _unsafe(name: str, path: Path) -> GlintError:
    what, hint = f"expected tensors and their names, found {name[:80]!r}", "nothing of it was run; "
    return UnsafeError("GL0801", what, where=str(path), hint=hint + "save net.state_dict() alone")


def _damaged(what: str, path: Path) -> GlintError:
    hint = "get the file again from its publisher"
    return InputError("GL0401", f"not a whole file of weights: {what}", where=str(path), hint=hint)


def _other(what: str, path: Path) -> GlintError:
    hint = "--backbone and --embedding must be those the weights were trained with"
    return InputError("GL0401", what, where=str(path), hint=hint)
