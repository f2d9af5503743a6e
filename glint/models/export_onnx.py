"""ONNX files of trained nets, checked by running them before they get their name."""

# n images, C channels, H W height and width, E embedding

from __future__ import annotations

import importlib.util
import io
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import glint
from glint.errors import BusyError, GlintError, InputError, UsageError
from glint.files import atomic
from glint.log import Progress, silent
from glint.models import recogniser, stored
from glint.results import models as results

if TYPE_CHECKING:
    from torch import Tensor, nn

COSINE = 0.99999  # least agreement with torch, over all crops
MARK = "glint"  # producer name and prefix of the metadata keys


def export_onnx(
    checkpoint: str | Path,
    out: str | Path,
    *,
    opset: int = 17,
    crops: int = 32,
    overwrite: bool = False,
    progress: Progress = silent,
) -> results.Export:
    """Write the net of a run or checkpoint as ONNX that insightface takes for a recogniser.

    Input `data` (n, 3, 112, 112), RGB as (pixel - 127.5) / 127.5; one output `embedding` (n, E),
    not normalised. The file is run on `crops` seeded random crops, through insightface where it
    is installed, and appears only if every embedding agrees with torch.
    Returns {onnx, bytes, sha256, opset, dim, backbone, cosine_min, insightface, checkpoint}.
    Raises UsageError GL0002/GL0003, BusyError GL0004 where `out` is not an earlier export,
    InputError GL0401 for weights that are not finite or an ONNX file that disagrees.
    """
    out = Path(out)
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UsageError("GL0003", f"export needs {package}", hint=recogniser.EXTRA)
    if out.suffix != ".onnx":
        raise UsageError(
            "GL0002", f"expected a name ending in .onnx, found {out.name}",
            hint="insightface tells a model file by its name",
        )  # fmt: skip
    if not 11 <= opset <= 20:
        raise UsageError("GL0002", f"--opset must be 11 to 20, found {opset}")
    net = stored.load(checkpoint)
    require_finite(net)
    if out.exists() and not overwrite and not is_ours(out):
        raise BusyError(
            "GL0004", "a file is here that glint export did not make", where=str(out),
            hint="choose another name, or pass --overwrite",
        )  # fmt: skip
    progress(0, 3, "trace")
    data = _model(net, opset)
    progress(1, 3, "check")
    with tempfile.TemporaryDirectory(prefix="glint-export-") as folder:
        trial = Path(folder) / "trial.onnx"
        with atomic.writing(trial):
            trial.write_bytes(data)
        opened = recogniser.open_model(trial, device="cpu")
        cosine = _agreement(net, opened, crops)
        digest = opened.digest
    progress(2, 3, "write")
    atomic.sweep(out.parent, out.name)
    with atomic.replacing(out) as file:
        file.write(data)
    progress(3, 3)
    return results.Export(
        onnx=str(out),
        bytes=len(data),
        sha256=digest,
        opset=opset,
        dim=net.embedding,
        backbone=net.name,
        cosine_min=cosine,
        crops=crops,
        insightface=opened.engine == "insightface",
        checkpoint=str(net.path),
    )


def require_finite(net: stored.Stored) -> None:
    """Refuse a net with NaN or infinity in a parameter or buffer: InputError GL0401."""
    state = net.net.state_dict()
    bad = [name for name, value in state.items() if not bool(value.isfinite().all())]
    if bad:
        raise InputError(
            "GL0401",
            f"{len(bad)} of {len(state)} tensors hold NaN or infinity, first {bad[0]}",
            where=str(net.path),
            hint="export an earlier checkpoint of the run",
        )


def _model(net: stored.Stored, opset: int) -> bytes:
    """Trace the net and mark the file as ours."""
    import onnx
    import torch

    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracing exporter is deprecated, and needs least
        torch.onnx.export(
            net.net,
            (torch.zeros(2, 3, 112, 112),),
            buffer,  # type: ignore[arg-type]  # a file object, as its documentation says
            input_names=["data"],
            output_names=["embedding"],
            dynamic_axes={"data": {0: "n"}, "embedding": {0: "n"}},
            opset_version=opset,
            training=torch.onnx.TrainingMode.EVAL,
            dynamo=False,
        )
    model = onnx.load_from_string(buffer.getvalue())
    for node in model.graph.node[:8]:  # these names would tell insightface not to scale pixels
        if node.name.startswith(("Sub", "Mul", "_minus", "_mul")):
            node.name = "net/" + node.name
    model.producer_name, model.producer_version = MARK, glint.__version__
    about = {"backbone": net.name, "checkpoint": net.path.name, "weights_sha256": net.digest,
             "input": "RGB, (pixel - 127.5) / 127.5"}  # fmt: skip
    onnx.helper.set_model_props(model, {f"{MARK}.{key}": value for key, value in about.items()})
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def is_ours(path: Path) -> bool:
    """Return whether `path` is an ONNX file that glint made."""
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:  # whatever it is, it is not ours
        return False
    return bool(model.producer_name == MARK)


def random_crops(count: int, seed: int = 0) -> np.ndarray:
    """Draw `count` uint8 crops (n, 112, 112, 3): coarse blobs, fine grain, all brightnesses."""
    rng = np.random.Generator(np.random.Philox(seed))
    coarse = rng.integers(0, 256, (count, 8, 8, 3)).repeat(14, axis=1).repeat(14, axis=2)
    grain = rng.integers(-40, 41, coarse.shape)
    return (coarse + grain).clip(0, 255).astype(np.uint8)


def _agreement(net: stored.Stored, opened: recogniser.Recogniser, crops: int) -> float:
    """Compare the opened ONNX file with torch on random crops; return the least cosine."""
    import torch

    if (opened.mean, opened.std) != (127.5, 127.5) or opened.dim != net.embedding:
        raise _disagrees(
            f"it is taken for one of mean {opened.mean}, std {opened.std}, {opened.dim} numbers"
        )
    ours_nE, theirs_nE = both(net.net, opened, random_crops(crops))
    cosine_n = torch.nn.functional.cosine_similarity(ours_nE, theirs_nE)
    least = min(1.0, float(cosine_n.nan_to_num(-1).min()))
    if least < COSINE:
        raise _disagrees(f"least cosine with torch {least:.7f}, expected at least {COSINE}")
    return least


def both(
    net: nn.Module, opened: recogniser.Recogniser, image_nHWC: np.ndarray
) -> tuple[Tensor, Tensor]:
    """Embed crops by a net that takes (pixel - 127.5) / 127.5 and by another recogniser.

    Returns float64 (n, E) of either, as they come.
    """
    import torch

    ours, theirs = [], []
    for at in range(0, len(image_nHWC), 8):
        part = image_nHWC[at : at + 8]
        image_nCHW = torch.from_numpy(part).permute(0, 3, 1, 2).float().sub(127.5).div(127.5)
        with torch.inference_mode():
            ours.append(net(image_nCHW.contiguous()).double())
        theirs.append(torch.from_numpy(opened.embed(part)).double())
    return torch.cat(ours), torch.cat(theirs)


def _disagrees(what: str) -> GlintError:
    return InputError("GL0401", f"the exported file is not the net: {what}; nothing was written")
