"""The head's kernels in Triton's interpreter; `tests/gpuless` compiles them for cards."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
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
    options = PartialFCOptions(gemm="bf16")
    chosen = pass_type(options, 512, torch.float32, torch.device("cuda"))
    steep = pass_type(replace(options, scale=65.0), 512, torch.float32, torch.device("cuda"))
    assert steep is SoftmaxPass
    assert (chosen is SoftmaxPass) == (kind == "torch")
    assert kind == "torch" or chosen is fused.fused("bf16")
