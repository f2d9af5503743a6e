"""The head's kernels in Triton's interpreter, and compiled for cards that are not there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from glint.errors import UsageError
from glint.nn.heads import partial_fc
from glint.nn.heads.options import PartialFCOptions
from glint.nn.heads.partial_fc import PartialFC, pass_type
from glint.nn.heads.softmax import SoftmaxPass
from glint.nn.margins import CosFace

HERE = Path(__file__).parent


def release() -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in version("triton").split(".")[:2])
    except PackageNotFoundError:
        return (0, 0)


needs_interpreter = pytest.mark.skipif(
    release() < (3, 7), reason="the head's kernels are not tested: pip install 'triton>=3.7'"
)
needs_triton = pytest.mark.skipif(
    release() < (3, 3), reason="the head's kernels are not compiled: pip install 'triton>=3.3'"
)


def interpreted(marks: str, seconds: float) -> None:
    """Run kernel_cases.py under the interpreter; all that is chosen must pass."""
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "-m", marks,
         str(HERE / "kernel_cases.py")],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=seconds,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout[-8000:] + found.stderr[-2000:]
    assert re.search(r"\d+ passed", found.stdout) and "skipped" not in found.stdout, found.stdout


@needs_interpreter
@pytest.mark.timeout(400)
def test_kernels_equal_torch_and_float64():
    interpreted("not slow", 390)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@needs_interpreter
def test_kernels_on_many_shapes():
    interpreted("slow", 1100)


def test_a_name_that_is_none_is_refused():
    with pytest.raises(UsageError, match=r"kernels is 'cuda', expected auto or torch or triton"):
        PartialFC(4, 4, PartialFCOptions(kernels="cuda"), margin=CosFace())


def test_kernels_need_triton_and_a_card():
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    wants = "the package triton" if find_spec("triton") is None else "a CUDA device"
    with pytest.raises(UsageError, match=wants):
        PartialFC(4, 4, PartialFCOptions(kernels="triton"), margin=CosFace())


COMPILE = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from glint.nn.heads import fused, kernels

INT64, INT32 = {"index_k"}, {
    "target_N", "mask_row_e", "mask_column_e", "mask_bounds", "sample_t", "row_t",
    "target_bounds", "half_w", "half_v",
}
WHOLE = {"samples", "rows", "first", "strip", "offset", "low_w", "high_w", "low_v", "high_v"}
REAL = {"scale", "threshold", "keep", "lr", "momentum", "decay"}
HALF = {"unit_ND", "operand_kD"}

def kind(name, table):
    if name in WHOLE or name in REAL:
        return "i32" if name in WHOLE else "fp32"
    if name in ("weight_cD", "momentum_cD"):
        return "*" + table
    return "*i64" if name in INT64 else "*i32" if name in INT32 else (
        "*bf16" if name in HALF else "*fp32")

def built(name, target, tiles, table="fp32", **chosen):
    kernel = getattr(kernels, name)
    constants = {"D": 512, "WIDE": 512, "ROWS": 4, "SAMPLES": tiles.samples,
                 "CLASSES": tiles.classes, "PRECISION": "ieee", "LEARN": True,
                 **dict.fromkeys(("ALL", "CUT", "MASKED", "BEHIND", "MOMENTUM", "STOCHASTIC"),
                                 False), **chosen}
    constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
    types = {k: "constexpr" if k in constants else kind(k, table) for k in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]]
               for i, k in enumerate(kernel.arg_names) if types[k][0] == "*"}
    places = {(kernel.arg_names.index(k),): v for k, v in constants.items()}
    warps = tiles.warps if "SAMPLES" in constants else 4
    code = triton.compile(
        ASTSource(kernel, types, constexprs=places, attrs=aligned), target=target,
        options={"num_warps": warps, "num_stages": tiles.stages})
    return {"shared": code.metadata.shared, "wgmma": code.asm["ptx"].count("wgmma.mma_async")}

capability, shared = int(sys.argv[1]), int(sys.argv[2])
target = GPUTarget("cuda", capability, 32)
tiles = fused.fitting(512, 2, shared, 132)
full = {"CUT": True, "MASKED": True, "BEHIND": True}
print(json.dumps({
    "stream": built("stream", target, tiles),
    "centre_grad": built("centre_grad", target, tiles),
    "stream masked": built("stream", target, tiles, CUT=True, MASKED=True),
    "centre_grad masked": built("centre_grad", target, tiles, "bf16", **full),
    "gather": built("gather", target, tiles, ALL=True),
    "gather behind": built("gather", target, tiles, "bf16", BEHIND=True),
    "move": built("move", target, tiles),
    "move all": built("move", target, tiles, "bf16", MOMENTUM=True, BEHIND=True, STOCHASTIC=True),
}))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_triton
@pytest.mark.parametrize(("capability", "shared"), [(90, 232448), (80, 166912), (89, 101376)])
def test_kernels_compile_for_a_card_and_fit_its_memory(tmp_path, capability, shared):
    import json

    program = tmp_path / "program.py"  # Triton reads sources, so kernels are imported from files
    program.write_text(COMPILE)
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), env.get("PYTHONPATH", "")])}
    found = subprocess.run(
        [sys.executable, str(program), str(capability), str(shared)],
        env={**env, "TRITON_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr[-4000:]
    built = json.loads(found.stdout.splitlines()[-1])
    assert len(built) == 8
    for name, one in built.items():
        assert one["shared"] <= shared, (name, one)
    if capability == 90:  # 32 for the cosines and 4 for the gradient; 68 where half is done twice
        assert built["stream"]["wgmma"] == built["centre_grad"]["wgmma"] == 36


@pytest.mark.parametrize(
    ("triton", "kind"), [("3.2.0", "torch"), ("3.3.1", "kernels"), ("", "torch")]
)
def test_auto_takes_no_triton_that_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, triton: str, kind: str
) -> None:
    def found(package: str) -> str:
        if not triton:
            raise PackageNotFoundError(package)
        return triton

    monkeypatch.setattr(partial_fc, "version", found)
    monkeypatch.setattr(partial_fc.torch.cuda, "get_device_capability", lambda _: (9, 0))
    fused = pytest.importorskip("glint.nn.heads.fused")
    chosen = pass_type("auto", 512, torch.float32, "bf16", torch.device("cuda"))
    assert (chosen is SoftmaxPass) == (kind == "torch")
    assert kind == "torch" or chosen is fused.fused("bf16")
