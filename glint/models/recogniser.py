"""Recognisers: anything that turns face crops into embeddings, opened by path.

The only door to insightface and onnxruntime. An ONNX file goes through insightface's model zoo
where that is installed, so that what is measured is what its users get; else through onnxruntime
with the same rule for the pixel range. A run or checkpoint directory is evaluated in torch.
"""

# n images, H W height and width, D embedding

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glint.errors import GlintError, InputError, UsageError
from glint.models import checkpoint, stored

EXTRA = "pip install 'glint-faces[export]' (onnx, onnxruntime) or 'glint-faces[insightface]'"


@dataclass(frozen=True)
class Recogniser:
    """A face recogniser.

    name: file or run name; dim: length of an embedding; size: pixels of a side of its crops;
    digest: sha256 of the weights, files beside an ONNX file included; engine: insightface,
    onnxruntime or torch; mean, std: what pixels 0..255 are shifted and divided by before the net.
    """

    name: str
    dim: int
    size: int
    digest: str
    engine: str
    mean: float
    std: float
    _run: Callable[[np.ndarray], np.ndarray]

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
    path: str | Path, *, threads: int | None = None, device: str | None = None
) -> Recogniser:
    """Open an ONNX recogniser, or the net of a run or checkpoint directory.

    threads: compute threads of this process, None = the engine's own choice. device: cpu, cuda or
    cuda:N, None = cuda where the engine has one.
    Raises UsageError GL0001 for a missing path and GL0003 for a missing engine, InputError GL0401
    for a file that is no recogniser, GL0701 for a damaged checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        return _open_stored(path, threads, device)
    if not path.is_file():
        raise UsageError(
            "GL0001", "no such model", where=str(path),
            hint="--model takes an .onnx file, a run directory or a checkpoint directory",
        )  # fmt: skip
    return _open_onnx(path, threads, device)


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


def pixel_range(path: Path) -> tuple[float, float]:
    """Return (mean, std) that a recogniser wants, by insightface's rule.

    (0, 1) where the names of its first eight nodes show a subtraction and a multiplication of its
    own, else (127.5, 127.5).
    """
    import onnx

    names = [node.name for node in onnx.load(str(path), load_external_data=False).graph.node[:8]]
    subtracts = any(name.startswith(("Sub", "_minus")) for name in names)
    multiplies = any(name.startswith(("Mul", "_mul")) for name in names)
    return (0.0, 1.0) if subtracts and multiplies else (127.5, 127.5)


def _open_onnx(path: Path, threads: int | None, device: str | None) -> Recogniser:
    if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnx") is None:
        raise UsageError("GL0003", "an ONNX model needs onnx and onnxruntime", hint=EXTRA)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    cuda = device != "cpu" and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    wanted, _, number = (device or "").partition(":")
    if wanted == "cuda" and not cuda:
        raise UsageError("GL0002", "this onnxruntime has no cuda", hint="use --device cpu")
    first = ("CUDAExecutionProvider", {"device_id": int(number or 0)})
    providers: list[Any] = [first] * cuda + ["CPUExecutionProvider"]
    # insightface tells a file by its suffix; anything else would be looked up under its home
    zoo = has_insightface() and path.suffix == ".onnx"
    try:
        model = zoo_model(path, options, providers) if zoo else None
        if model is not None:
            session, mean, std = model.session, model.input_mean, model.input_std
        else:
            session = onnxruntime.InferenceSession(str(path), options, providers=providers)
            mean, std = pixel_range(path)
    except Exception as error:  # onnx, protobuf and onnxruntime share no base class
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        if path.suffix in (".safetensors", ".pt", ".toml"):
            text = f"a file of {path.suffix}: give a run's or checkpoint's folder, or export it"
        raise _bad(path, f"expected an ONNX recogniser, found {text[:300]}") from None
    taken, given = session.get_inputs(), session.get_outputs()
    shape = taken[0].shape if taken else []
    size = shape[2] if len(shape) == 4 and isinstance(shape[2], int) else 112
    if len(taken) != 1 or len(given) != 1 or not _takes_crops(shape, size):
        inputs = ", ".join(f"{i.name} {i.shape}" for i in taken)
        outputs = ", ".join(f"{o.name} {o.shape}" for o in given)
        raise _bad(
            path,
            "expected one input (n, 3, 112, 112) and one output (n, D), "
            f"found inputs {inputs}; outputs {outputs}",
        )
    fixed = shape[0] if isinstance(shape[0], int) and shape[0] > 0 else 0
    name_in, name_out = taken[0].name, given[0].name

    def run(image_nHWC: np.ndarray) -> np.ndarray:
        image_nCHW = np.ascontiguousarray(image_nHWC.transpose(0, 3, 1, 2), dtype=np.float32)
        image_nCHW -= np.float32(mean)
        image_nCHW /= np.float32(std)
        count = len(image_nCHW)
        step = fixed or count
        parts = []
        for at in range(0, count, step):
            part = image_nCHW[at : at + step]
            if len(part) < step:
                rest = np.zeros((step - len(part), *part.shape[1:]), np.float32)
                part = np.concatenate([part, rest])
            parts.append(session.run([name_out], {name_in: part})[0])
        return np.asarray(np.concatenate(parts)[:count], dtype=np.float32)

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
        digest=file_digest(path),
        engine="insightface" if model is not None else "onnxruntime",
        mean=mean,
        std=std,
        _run=run,
    )


def file_digest(path: Path) -> str:
    """Return the SHA-256 of an ONNX file, and of the files that it keeps weights in if there are.

    Those stand in it as `location` entries of its tensors (onnx.proto, `external_data`).
    """
    own = checkpoint.sha256(path)
    beside = {
        data[found.end() : found.end() + _varint(found.group(1))].decode(errors="replace")
        for data in [path.read_bytes()]
        for found in re.finditer(rb"\x0a\x08location\x12([\x80-\xff]?[\x01-\x7f])", data)
    }
    if not beside:
        return own
    lines = [own, *(f"{checkpoint.sha256(path.parent / name)} {name}" for name in sorted(beside))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _varint(data: bytes) -> int:
    return data[0] & 127 | (data[1] << 7 if len(data) > 1 else 0)


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
    )


def _bad(path: Path, what: str) -> GlintError:
    return InputError(
        "GL0401", what, where=str(path),
        hint="a recogniser takes aligned RGB crops and gives one embedding for each",
    )  # fmt: skip
