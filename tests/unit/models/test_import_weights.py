"""Published weights: taken over number for number, or refused by name; no code of a file runs."""

from __future__ import annotations

import argparse
import codecs
import collections
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from glint.errors import BusyError, GlintError, InputError, UnsafeError, UsageError
from glint.log import logger
from glint.models import checkpoint, stored
from glint.models.import_weights import NAMES, import_weights
from glint.nn.backbones import create

TINY: dict[str, Any] = {"embedding": 16, "options": {"width": 0.125}}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """A state dict with lived-in norms."""
    torch.manual_seed(5)
    net = create("mobilefacenet", 16, width=0.125)
    with torch.no_grad():
        net(torch.rand(4, 3, 112, 112))
    return net.state_dict()


def torch_file(path: Path, value: object, zipped: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def take(path: Path, **options: Any) -> dict[str, Any]:
    return import_weights(path, "mobilefacenet", path.parent / "out", **{**TINY, **options})


@pytest.mark.parametrize("kind", ["plain", "legacy", "fp16", "ddp", "whole", "parameters"])
def test_every_form_gives_the_same_net(
    weights: dict[str, Tensor], tmp_path: Path, kind: str
) -> None:
    given: Any = collections.OrderedDict(weights)
    if kind == "fp16":
        given = {k: v.half() if v.is_floating_point() else v for k, v in given.items()}
    if kind == "ddp":
        given = {f"module.{k}": v for k, v in given.items()}
    if kind == "whole":
        given = {"epoch": 3, "state_dict_backbone": given, "state_optimizer": {"lr": 0.1}}
    if kind == "parameters":
        given = {k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in given.items()}
    found = take(torch_file(tmp_path / "w.pt", given, zipped=kind != "legacy"))
    assert (found.name, found.tensors) == ("mobilefacenet", len(weights))
    assert found.source.dtype == ("float16" if kind == "fp16" else "float32")
    assert found.source.sha256 == checkpoint.sha256(tmp_path / "w.pt")
    net = stored.load(tmp_path / "out")
    assert (net.embedding, net.options, net.step) == (16, {"width": 0.125}, 0)
    for name, value in net.net.state_dict().items():
        expected = weights[name]
        if kind == "fp16" and expected.is_floating_point():
            expected = expected.half().float()
        assert value.dtype == expected.dtype
        assert torch.equal(value, expected), name
    state = json.loads((net.path / "state.json").read_text())
    assert state["imported"] == asdict(found.source)


@pytest.mark.parametrize("place", ["ema", "model_ema", "ema.shadow"])
def test_another_state_is_named_and_taken(
    weights: dict[str, Tensor], tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(logger, "warning", lambda text, *rest: said.append(text % rest))
    given: Any = {f"module.{k}": v + v.is_floating_point() for k, v in weights.items()}
    for part in reversed(place.split(".")):
        given = {part: given}
    moments = [{"exp_avg": value} for value in weights.values()]
    path = torch_file(tmp_path / "w.pt", {"optimizer": moments, "model": weights, **given})
    found = load_file(Path(take(path).checkpoint) / "backbone.safetensors")
    assert torch.equal(found["conv_sep.layers.1.weight"], weights["conv_sep.layers.1.weight"])
    assert len(said) == 1
    assert f"taken is model; another state of such a net was left: {place} (--in" in said[0]
    other = import_weights(path, "mobilefacenet", tmp_path / "ema", inside=place, **TINY)
    found = load_file(Path(other.checkpoint) / "backbone.safetensors")
    assert torch.equal(found["conv_sep.layers.1.weight"], weights["conv_sep.layers.1.weight"] + 1)
    torch_file(path, {"model": weights, "ema": dict(weights)})  # the same numbers twice
    import_weights(path, "mobilefacenet", tmp_path / "same", **TINY)
    assert len(said) == 1
    with pytest.raises(UsageError, match="the file has no swa; there is model, ema"):
        import_weights(path, "mobilefacenet", tmp_path / "none", inside="swa", **TINY)


def test_safetensors_too_and_counters_may_be_missing(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    few = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    save_file(few, tmp_path / "w.safetensors")
    found = take(tmp_path / "w.safetensors")
    back = load_file(Path(found.checkpoint) / "backbone.safetensors")
    assert set(back) == set(weights)
    assert all(torch.equal(back[name], value) for name, value in few.items())
    assert int(back["conv_sep.layers.1.num_batches_tracked"]) == 0


def test_arcface_s_names_are_known() -> None:
    with torch.device("meta"):
        sizes = {
            old: sum(p.numel() for p in create(new).parameters()) for old, new in NAMES.items()
        }
    assert sizes["r50"] == 43_590_848
    assert sizes["vit_l_dp005_mask_005"] == 255_684_352
    assert len(sizes) == 9


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("form", ["zip", "legacy", *range(6), "module"])
def test_code_is_refused_and_not_run(tmp_path: Path, form: str | int) -> None:
    mark, path = tmp_path / "ran", tmp_path / "w.pt"
    if isinstance(form, int):
        path.write_bytes(pickle.dumps(Evil(mark), form))
    elif form == "module":
        torch_file(path, create("mobilefacenet", 16, width=0.125))
    else:
        torch_file(path, {"conv.weight": Evil(mark)}, zipped=form == "zip")
    with pytest.raises(UnsafeError, match=r"GL0801.*w\.pt: expected tensors") as caught:
        take(path)
    assert caught.value.exit_code == 8
    assert "nothing of it was run" in caught.value.hint
    assert not mark.exists()
    assert not (tmp_path / "out").exists()
    if isinstance(form, int):  # the file would have run
        pickle.loads(path.read_bytes())
        assert mark.exists()


class Made:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.made = (function, arguments)

    def __reduce__(self) -> Any:
        return self.made


# torch's restricted reader takes every one of these
BESIDE = {
    "memory nobody wrote": Made(torch.Tensor, 64),
    "a storage nobody wrote": Made(torch.UntypedStorage, 64),
    "text copied over and over": [Made(codecs.encode, "a", "latin1")] * 2,
    "a set": {1},
    "bytes": bytearray(b"a"),
    "a sparse tensor": torch.eye(2).to_sparse(),
    "a tensor without numbers": torch.empty(2, device="meta"),
    "fp8": torch.ones(2).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_no_plain_tensor_is_refused(tmp_path: Path, name: str) -> None:
    path = torch_file(tmp_path / "w.pt", {"conv.weight": BESIDE[name]})
    assert torch.load(path, weights_only=True)
    with pytest.raises(UnsafeError, match=r"GL0801.*w\.pt: expected tensors and their names"):
        take(path)
    assert not (tmp_path / "out").exists()


def test_a_flipped_bit_is_told(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = torch_file(tmp_path / "w.pt", weights)
    data = bytearray(path.read_bytes())
    number = weights["features.layers.2.weight"].numpy().tobytes()
    data[data.index(number[:64]) + 3] ^= 1
    path.write_bytes(data)
    torch.load(path, weights_only=True)
    with pytest.raises(InputError, match=r"GL0401.*/data/\d+ does not match its checksum"):
        take(path)
    assert not (tmp_path / "out").exists()


def test_names_that_hide_what_a_mapping_does(tmp_path: Path) -> None:
    found = collections.OrderedDict(weight=torch.zeros(1))
    found.values = 1  # type: ignore[method-assign,assignment]
    with pytest.raises(InputError, match=r"GL0401.*not a whole file of weights"):
        take(torch_file(tmp_path / "w.pt", found))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_anywhere_is_told(
    weights: dict[str, Tensor], tmp_path: Path, zipped: bool
) -> None:
    path = torch_file(tmp_path / "w.pt", weights, zipped)
    data = path.read_bytes()
    for size in (0, 1, 2, 4, 30, 99, 1000, 5000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match=r"GL0401.*not a whole file of weights"):
            take(path)
    assert not (tmp_path / "out").exists()


def test_other_files_are_told(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "w.pt"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    broken = {**weights, "conv_sep.layers.0.weight": torch.full((64, 16, 1, 1), torch.nan)}
    wide = {k: v.new_zeros(1).expand(10**15) if v.ndim else v for k, v in weights.items()}
    cases: list[tuple[Any, str]] = [
        (b"\xff\xd8 a picture", "not a whole file"),
        (packed.getvalue(), "packed or overlap"),
        ([1], "expected tensors by name, found list"),
        ({}, "expected tensors by name, found dict"),
        ({"epoch": 1}, "found 'epoch': int"),
        (broken, "conv_sep.layers.0.weight"),
        (wide, r"of another shape: layers.0.layers.0.weight \(1000000000000000,\) instead of"),
    ]
    for given, said in cases:
        if isinstance(given, bytes):
            path.write_bytes(given)
        else:
            torch_file(path, given)
        with pytest.raises(InputError, match=said) as caught:
            take(path)
        assert caught.value.code == "GL0401"
    with pytest.raises(UsageError, match=r"GL0001.*no such file"):
        take(tmp_path / "none.pt")
    with pytest.raises(UsageError, match="no backbone is called 'r51'"):
        import_weights(path, "r51", tmp_path / "out")


def test_weights_of_another_net_are_told_by_name(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    given = {k: v for k, v in weights.items() if not k.startswith("layers.7")}
    path = torch_file(tmp_path / "w.pt", {**given, "fc.weight": torch.zeros(2)})
    with pytest.raises(InputError) as caught:
        take(path, embedding=32)
    what = caught.value.what
    assert "not those of mobilefacenet with embedding 32" in what
    gone = [k for k in weights if k.startswith("layers.7") and "num_batches" not in k]
    assert f"{len(gone)} missing: {', '.join(gone[:5])}, ...;" in what
    assert "1 unexpected: fc.weight;" in what
    assert "features.layers.2.weight (16, 64) instead of (32, 64)" in what
    assert "--embedding" in caught.value.hint


def test_nothing_is_overwritten_and_a_broken_import_is_repeated(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    path = torch_file(tmp_path / "w.pt", weights)
    out = tmp_path / "out"
    left = out / "checkpoints" / ".step-00000000.partial"
    left.mkdir(parents=True)
    (left / "backbone.safetensors").write_bytes(b"half")
    take(path)
    assert not left.exists()
    assert checkpoint.problem(checkpoint.find(out)) == ""
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(BusyError, match=r"GL0004.*holds step-00000000"):
        take(path)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    errors: list[GlintError] = []
    for there in (path, tmp_path):
        with pytest.raises(BusyError) as caught:
            import_weights(path, "mobilefacenet", there, **TINY)
        errors.append(caught.value)
    assert [e.code for e in errors] == ["GL0004", "GL0004"]


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_numbers_too_large_for_the_net_are_told(
    weights: dict[str, Tensor], tmp_path: Path, kind: torch.dtype
) -> None:
    name = next(name for name in weights if weights[name].ndim == 4)
    given = {**weights, name: weights[name].to(kind)}
    given[name].view(-1)[3] = 1e39 if kind == torch.float64 else float("inf")
    with pytest.raises(InputError, match=rf"GL0401.*{name}"):
        take(torch_file(tmp_path / "w.pt", given))
    assert not (tmp_path / "out").exists()


def test_two_tensors_of_one_name_are_told(weights: dict[str, Tensor], tmp_path: Path) -> None:
    name = next(iter(weights))
    given = {**weights, f"module.{name}": torch.zeros_like(weights[name])}
    with pytest.raises(InputError, match=rf"GL0401.*two tensors are called {name}"):
        take(torch_file(tmp_path / "w.pt", given))


WRITERS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "lightning": lambda w: {
        "state_dict": {**{f"model.{k}": v for k, v in w.items()}, "head.kernel": torch.ones(2, 3)},
        "callbacks": {}, "epoch": 3, "hyper_parameters": argparse.Namespace(lr=0.1),
    },
    "compiled in ddp": lambda w: {f"module._orig_mod.{k}": v for k, v in w.items()},
    "backbone of a module": lambda w: {f"student.backbone.{k}": v for k, v in w.items()},
    "a head beside it": lambda w: {**w, "fc.weight": torch.ones(3, 16), "fc.bias": torch.ones(3)},
    "a model in a model": lambda w: {"model": {"backbone": w, "head": {"w": torch.ones(2)}}},
    "a key of its own": lambda w: {"resnet_weights": w, "acc": 0.99},
    "numpy beside it": lambda w: {"net": w, "best": np.float64(0.5), "step": np.int64(3)},
    "paths and sets": lambda w: {"net": w, "from": Path("x"), "ids": {1, 2}},
}  # fmt: skip


@pytest.mark.parametrize("writer", WRITERS)
def test_what_training_programs_write(
    weights: dict[str, Tensor], tmp_path: Path, writer: str
) -> None:
    found = take(torch_file(tmp_path / "w.pt", WRITERS[writer](weights)))
    back = load_file(Path(found.checkpoint) / "backbone.safetensors")
    assert set(back) == set(weights)
    assert all(torch.equal(back[name], value) for name, value in weights.items())


def test_a_net_that_is_there_twice_is_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    both = {f"{side}.{k}": v for side in ("student", "teacher") for k, v in weights.items()}
    with pytest.raises(InputError, match=r"GL0401.*two tensors are called"):
        take(torch_file(tmp_path / "w.pt", both))
