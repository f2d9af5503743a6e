"""Recognisers: anything that turns face crops into embeddings, opened by path.

The only door to insightface. An ONNX file is opened by insightface's model zoo
where that is installed and takes it, else by onnxruntime; how its pixels are scaled is read in its
nodes. A run or checkpoint directory is evaluated in torch.
"""

# n images, H W height and width, D embedding

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glint.errors import GlintError, InputError, UsageError
from glint.log import logger
from glint.models import onnx_file, stored
from glint.models.onnx_file import Reading

TYPES: dict[str, Any] = {
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8,
    "tensor(double)": np.float64,
}  # fmt: skip
EXTRA = "pip install 'glint-faces[export]' (onnx, onnxruntime) or 'glint-faces[insightface]'"


@dataclass(frozen=True)
class Recogniser:
    """A face recogniser.

    name: file or run name; dim: length of an embedding; size: pixels of a side of its crops;
    digest: sha256 of the weights, files beside an ONNX file included; engine: insightface,
    onnxruntime or torch; parameters: numbers in the net; mean, std: what pixels 0..255
    are shifted and divided by before the net; concurrent: several threads may embed at once, and
    each call computes on the thread that makes it.
    """

    name: str
    dim: int
    size: int
    digest: str
    engine: str
    mean: float
    std: float
    _run: Callable[[np.ndarray], np.ndarray]
    parameters: int = 0
    concurrent: bool = False

    def embed(self, image_nHWC: np.ndarray) -> np.ndarray:
        """Embed uint8 RGB crops: float32 (n, D), not normalised. ValueError for other input."""
        shape = (self.size, self.size, 3)
        if image_nHWC.dtype != np.uint8 or image_nHWC.shape[1:] != shape:
            raise ValueError(
                f"expected uint8 (n, {self.size}, {self.size}, 3), "
                f"found {image_nHWC.dtype} {image_nHWC.shape}"
            )
        if not len(image_nHWC):
            return np.empty((0, self.dim), np.float32)
        return self._run(image_nHWC)


def open_model(
    path: str | Path,
    *,
    threads: int | None = None,
    device: str | None = None,
    reading: Reading = Reading(),  # noqa: B008
) -> Recogniser:
    """Open an ONNX recogniser, or the net of a run or checkpoint directory.

    threads: compute threads of a call, None = the engine's own choice; 0 = one of onnxruntime, for
    callers on several threads, else the engine's own choice. device: cpu, cuda or
    cuda:N, None = cuda where the engine has one. reading: of an ONNX file, over what it says.
    A folder of insightface is read as its manifest says. Raises UsageError GL0001 for a missing
    path, GL0002 for outputs to choose among and GL0003 for a missing engine, InputError GL0401 for
    a file that is no recogniser, GL0701 for a damaged checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        if (found := onnx_file.package(path)) is not None:
            return _open_onnx(found[0], threads, device, onnx_file.over(reading, found[1]))
        if reading.given:
            where = "--output, --mean, --std, --bgr"
            raise UsageError("GL0002", "only an ONNX file is read otherwise", where=where)
        return _open_stored(path, threads, device)
    if not path.is_file():
        raise UsageError(
            "GL0001", "no such model", where=str(path),
            hint="--model takes an .onnx file, a run directory or a checkpoint directory",
        )  # fmt: skip
    return _open_onnx(path, threads, device, reading)


def has_insightface() -> bool:
    """Return whether insightface can be imported, without importing it."""
    return importlib.util.find_spec("insightface") is not None


def zoo_model(path: Path, session_options: Any = None, providers: list[Any] | None = None) -> Any:
    """Load an ONNX file as insightface does; None where it does not take it for a recogniser.

    What insightface prints goes to stderr.
    """
    with contextlib.redirect_stdout(sys.stderr):
        from insightface.model_zoo import get_model
        from insightface.model_zoo.arcface_onnx import ArcFaceONNX

        model = get_model(str(path), providers=providers, sess_options=session_options)
    return model if isinstance(model, ArcFaceONNX) else None


def _open_onnx(path: Path, threads: int | None, device: str | None, reading: Reading) -> Recogniser:
    if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnx") is None:
        raise UsageError("GL0003", "an ONNX model needs onnx and onnxruntime", hint=EXTRA)
    model = onnx_file.loaded(path)
    session, engine = _session(path, model, 1 if threads == 0 else threads, device)
    taken = session.get_inputs()
    shape = taken[0].shape if taken else []
    rows = len(shape) == 4 and shape[3] == 3 and shape[1] != 3  # height, width, colours
    sides = (shape[1:3] if rows else shape[2:4]) if len(shape) == 4 else []
    size = sides[0] if sides and isinstance(sides[0], int) else 112
    colours = [shape[0], shape[3], *sides] if rows else shape
    if len(taken) != 1 or not _takes_crops(colours, size) or taken[0].type not in TYPES:
        inputs = ", ".join(f"{i.name} {i.shape} {i.type}" for i in taken)
        raise _bad(path, f"expected one input (n, 3, 112, 112), found inputs {inputs}")
    name_out = _output([one.name for one in session.get_outputs()], reading.output, path)
    kind = TYPES[taken[0].type]
    found = onnx_file.pixel_range(model, path)
    mean, std, why = onnx_file.settled(reading, found, kind is np.uint8)
    order = "BGR" if reading.bgr else "RGB"
    said = f"{order}, (pixel - {mean:g}) / {std:g} ({why}), output {name_out}"
    level = logging.WARNING if why == onnx_file.UNKNOWN else logging.INFO
    logger.log(level, "model %s: %d x %d pixels, %s", path.name, size, size, said)
    fixed = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else 0
    name_in = taken[0].name

    def run(image_nHWC: np.ndarray) -> np.ndarray:
        image_nHWC = image_nHWC[..., ::-1] if reading.bgr else image_nHWC
        image = image_nHWC if rows else image_nHWC.transpose(0, 3, 1, 2)
        if kind is np.uint8:
            image = np.ascontiguousarray(image)
        else:
            image = np.ascontiguousarray(image, dtype=np.float32)
            image -= np.float32(mean)
            image /= np.float32(std)
            image = image.astype(kind, copy=False)
        count = len(image)
        step = fixed or count
        parts = []
        for at in range(0, count, step):
            part = image[at : at + step]
            if len(part) < step:
                part = np.concatenate([part, np.zeros((step - len(part), *part.shape[1:]), kind)])
            parts.append(session.run([name_out], {name_in: part})[0])
        made = np.asarray(np.concatenate(parts)[:count], dtype=np.float32)
        return made[:, :, 0, 0] if made.ndim == 4 and made.shape[2:] == (1, 1) else made

    try:
        probe = run(np.zeros((1, size, size, 3), np.uint8))
    except Exception as error:
        raise _bad(path, f"it does not run on one crop: {str(error)[:300]}") from None
    if probe.ndim != 2:
        raise _bad(path, f"expected an output (n, D), found {probe.shape} for one crop")
    return Recogniser(
        name=path.name,
        dim=probe.shape[1],
        size=size,
        digest=onnx_file.digest(path, onnx_file.beside(model), reading),
        engine=engine,
        mean=mean,
        std=std,
        _run=run,
        parameters=onnx_file.parameters(model),
        concurrent=threads in (0, 1) and session.get_providers() == ["CPUExecutionProvider"],
    )


def _providers(device: str | None) -> list[Any]:
    """Return onnxruntime's providers for a device. Raises UsageError GL0002."""
    import onnxruntime

    cuda = device != "cpu" and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    wanted, _, number = (device or "").partition(":")
    if wanted == "cuda" and not cuda:
        raise UsageError("GL0002", "this onnxruntime has no cuda", hint="use --device cpu")
    first = ("CUDAExecutionProvider", {"device_id": int(number or 0)})
    return [first] * cuda + ["CPUExecutionProvider"]


def _options(threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    return options


def _session(path: Path, model: Any, threads: int | None, device: str | None) -> tuple[Any, str]:
    """Return an open session, and what opened it: insightface where it takes the file."""
    providers = _providers(device)
    # insightface tells a file by its suffix; anything else would be looked up under its home
    if has_insightface() and path.suffix == ".onnx":
        with contextlib.suppress(Exception):  # it asserts what a recogniser need not be
            if (found := zoo_model(path, _options(threads), providers)) is not None:
                return found.session, "insightface"
    return session(path, model, threads, device), "onnxruntime"


def session(path: Path, model: Any, threads: int | None, device: str | None) -> Any:
    """Open an ONNX file by onnxruntime; `model` is what it parses to, for errors, or None.

    Raises UsageError GL0002, InputError GL0401.
    """
    import onnxruntime

    options, providers = _options(threads), _providers(device)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's errors share no base class
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        what = f"this onnxruntime ({onnxruntime.__version__}) does not load it"
        if model is not None:
            made = ", ".join(f"{one.domain or 'onnx'} {one.version}" for one in model.opset_import)
            what += f"; it was written for IR {model.ir_version}, operators {made}"
        raise _bad(path, f"{what}: {text[:200]}") from None


def _output(names: list[str], wanted: str, path: Path) -> str:
    """Return the output to take. Raises UsageError GL0002 where that is not said."""
    if wanted in names or (not wanted and len(names) == 1):
        return wanted or names[0]
    what = f"no output {wanted}" if wanted else f"{len(names)} outputs"
    raise UsageError(
        "GL0002", f"{what}; the model has {', '.join(names)}", where=str(path),
        hint=f"--output {names[0]} takes one" if names else "",
    )  # fmt: skip


def _takes_crops(shape: list[Any], size: int) -> bool:
    """Return whether an input shape is (n, 3, size, size), names standing for any number."""
    wanted = (0, 3, size, size)
    return len(shape) == 4 and all(
        not isinstance(found, int) or found == expected
        for found, expected in zip(shape[1:], wanted[1:])
    )


def _open_stored(path: Path, threads: int | None, device: str | None) -> Recogniser:
    import torch

    if threads:
        torch.set_num_threads(threads)
    found = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if found == "cuda" and not torch.cuda.is_available():
        raise UsageError("GL0002", "this torch has no cuda", hint="use --device cpu")
    net = stored.load(path)
    model = net.net.to(found)
    for value in (*model.parameters(), *model.buffers()):
        if value.ndim == 4:  # about half the time of depth-wise nets on a CPU
            value.data = value.data.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(image_nHWC: np.ndarray) -> np.ndarray:
        pixels_nHWC = torch.from_numpy(np.ascontiguousarray(image_nHWC)).to(found)
        image_nCHW = pixels_nHWC.permute(0, 3, 1, 2).float().sub_(127.5).div_(127.5)
        return np.asarray(model(image_nCHW).float().cpu().numpy())

    run_name = net.path.parent.parent.name if net.path.parent.name == "checkpoints" else ""
    return Recogniser(
        name=f"{run_name}/{net.path.name}" if run_name else net.path.name,
        dim=net.embedding,
        size=112,
        digest=net.digest,
        engine="torch",
        mean=127.5,
        std=127.5,
        _run=run,
        parameters=sum(one.numel() for one in model.parameters()),
    )


def _bad(path: Path, what: str) -> GlintError:
    return InputError(
        "GL0401", what, where=str(path),
        hint="a recogniser takes aligned RGB crops and gives one embedding for each",
    )  # fmt: skip
