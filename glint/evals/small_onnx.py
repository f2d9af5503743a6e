"""A recogniser in int8 or float16, kept only where it verifies nearly as well as it did."""

# n images, C channels, H W height and width

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import glint
from glint.errors import BusyError, InputError, UsageError
from glint.evals.embed import decode, verify
from glint.evals.packs import nonsense, read_bin
from glint.files import atomic
from glint.log import Progress, silent
from glint.models import export_onnx, onnx_file, recogniser
from glint.results import models as results
from glint.shards.dataset import Dataset

IMAGES = 256  # of the dataset, to see the ranges of activations on
PERCENTILE = 99.99  # of activations within a range; whole ranges cost five times the error
LAYERS = ("Conv", "Gemm", "MatMul")  # what int8 computes; the rest stays in float32
LAST = 2  # layers at the end that a second attempt spares, beside the first one
TIMED = 30  # single images


def shrink(
    source: str | Path,
    out: str | Path,
    kind: str,
    pack: str | Path,
    *,
    calibrate: str | Path | None = None,
    limit: float = 0.2,
    overwrite: bool = False,
    progress: Progress = silent,
) -> results.ExportSmall:
    """Write a run, checkpoint or ONNX file in `kind` (int8, fp16) as ONNX; inputs stay float32.

    It is verified on the pairs of `pack`, and takes its name where accuracy falls by no more than
    `limit` percentage points. int8: static, QDQ, a scale for each channel of weights; ranges of
    activations are seen on images of the dataset `calibrate`, and where all layers cost too much,
    the first and the last two stay in float32. Raises InputError GL0707 above the limit, UsageError
    GL0002, BusyError GL0004 where `out` is a file that glint did not make.
    """
    source, out = Path(source), Path(out)
    if out.suffix != ".onnx":
        raise UsageError("GL0002", f"expected a name ending in .onnx, found {out.name}")
    same = out.exists() and out.resolve() == source.resolve()
    if same or (out.exists() and not overwrite and not export_onnx.is_ours(out)):
        what = "it is the source" if same else "a file is here that glint export did not make"
        raise BusyError("GL0004", what, where=str(out), hint="choose another name")
    pairs = read_bin(pack)
    if odd := nonsense(pairs):
        raise UsageError("GL0002", odd, where=str(pack))
    with tempfile.TemporaryDirectory(prefix="glint-small-") as folder:
        whole, small = Path(folder) / "whole.onnx", Path(folder) / "small.onnx"
        if source.suffix == ".onnx" and source.is_file():
            whole = source
        else:
            export_onnx.export_onnx(source, whole)
        before = recogniser.open_model(whole, threads=1, device="cpu")
        was = verify(before, pairs, progress=progress).accuracy
        tried: list[str] = []
        for spared in (0, 1 + LAST) if kind == "int8" else (0,):
            if kind == "int8":
                assert calibrate is not None
                _int8(whole, small, before, _crops(Path(calibrate), before.size), spared)
            else:
                _half(whole, small)
            after = recogniser.open_model(small, threads=1, device="cpu")
            if (after.mean, after.std, after.dim) != (before.mean, before.std, before.dim):
                raise InputError("GL0401", "the smaller file is not read as the whole one is",
                                 where=str(source))  # fmt: skip
            now = verify(after, pairs, progress=progress).accuracy
            if 100 * (was - now) <= limit + 1e-9:
                break
            tried.append(f"{100 * now:.2f} %" + (f" with {spared} layers spared" if spared else ""))
        else:
            raise InputError(
                "GL0707",
                f"{kind} verifies {', '.join(tried)}, the whole net {100 * was:.2f} %: more than "
                f"{limit:g} points are lost; nothing was written",
                where=str(pack), hint="--limit allows more; --fp16 loses less than --int8",
            )  # fmt: skip
        data = _marked(small, source.name, kind)
        times = [_milliseconds(one) for one in (before, after)]
        sizes = whole.stat().st_size, len(data)
    atomic.sweep(out.parent, out.name)
    with atomic.replacing(out) as file:
        file.write(data)
    return results.ExportSmall(
        onnx=str(out), kind=kind, sha256=atomic.sha256_of(out), dim=after.dim, pack=str(pack),
        pairs=len(pairs), accuracy_before=was, accuracy=now, limit=limit, bytes_before=sizes[0],
        bytes=sizes[1], ms_before=times[0], ms=times[1], spared=spared, source=str(source),
    )  # fmt: skip


def _crops(root: Path, size: int) -> Iterator[np.ndarray]:
    """Decode IMAGES images of a dataset, drawn by a fixed seed: (size, size, 3) each."""
    dataset = Dataset(root)
    rows = np.random.default_rng(0).permutation(dataset.n)[:IMAGES]
    for row in np.sort(rows):
        yield decode(dataset.read(int(row)), size, f"{root}: {dataset.key[int(row)]}")


class _Reader:
    """Hands crops to the calibration, scaled as the net wants them, in batches of its size."""

    def __init__(self, crops: Iterator[np.ndarray], model: recogniser.Recogniser, net: Any) -> None:
        self.name, shape = net.name, [one.dim_value for one in net.type.tensor_type.shape.dim]
        self.crops, self.model, self.batch = crops, model, shape[0] or 8

    def get_next(self) -> dict[str, np.ndarray] | None:
        part = [crop for crop, _ in zip(self.crops, range(self.batch))]
        if len(part) < self.batch:
            return None
        image_nCHW = np.stack(part).astype(np.float32).transpose(0, 3, 1, 2)
        image_nCHW = (image_nCHW - np.float32(self.model.mean)) / np.float32(self.model.std)
        return {self.name: np.ascontiguousarray(image_nCHW)}


def _int8(
    whole: Path, small: Path, model: recogniser.Recogniser, crops: Iterator[np.ndarray], spared: int
) -> None:
    import onnx
    from onnxruntime import quantization as onnx8
    from onnxruntime.quantization.shape_inference import quant_pre_process

    fused = small.with_name("fused.onnx")
    graph = onnx_file.loaded(whole).graph
    weights = {one.name for one in graph.initializer}
    taken = next(one for one in graph.input if one.name not in weights)
    shape = [one.dim_value for one in taken.type.tensor_type.shape.dim]
    if taken.type.tensor_type.elem_type != onnx.TensorProto.FLOAT or shape[1] not in (0, 3):
        raise UsageError(
            "GL0002", f"--int8 takes a net of float32 (n, 3, H, W), found {shape}", where=str(whole)
        )
    with _quiet():
        quant_pre_process(str(whole), str(fused), skip_symbolic_shape=True)
        nodes = onnx.load(str(fused)).graph.node
        for number, node in enumerate(nodes):
            node.name = node.name or f"node{number}"
        layers = [node.name for node in nodes if node.op_type in LAYERS]
        onnx8.quantize_static(
            str(fused), str(small), _Reader(crops, model, taken),
            quant_format=onnx8.QuantFormat.QDQ, per_channel=True,
            op_types_to_quantize=list(LAYERS), weight_type=onnx8.QuantType.QInt8,
            activation_type=onnx8.QuantType.QUInt8,
            calibrate_method=onnx8.CalibrationMethod.Percentile,
            nodes_to_exclude=[layers[0], *layers[-LAST:]] if spared else [],
            extra_options={"CalibPercentile": PERCENTILE},
        )  # fmt: skip


def _half(whole: Path, small: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    with _quiet():
        onnx.save(convert_float_to_float16(onnx.load(str(whole)), keep_io_types=True), str(small))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let the quantiser print and log nothing of its own."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.root.setLevel(level)


def _marked(path: Path, source: str, kind: str) -> bytes:
    import onnx

    model = onnx.load(str(path))
    model.producer_name, model.producer_version = export_onnx.MARK, glint.__version__
    told = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, told | {"glint.kind": kind, "glint.source": source})
    return bytes(model.SerializeToString(deterministic=True))


def _milliseconds(model: recogniser.Recogniser) -> float:
    """Return the median wall time of single images on one thread."""
    image_nHWC = np.zeros((1, model.size, model.size, 3), np.uint8)
    times = []
    for _ in range(TIMED):
        began = time.perf_counter()
        model.embed(image_nHWC)
        times.append(time.perf_counter() - began)
    return round(1000 * float(np.median(times)), 3)
