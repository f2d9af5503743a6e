"""The public names of glint: which there are, how they are called, and that they load nothing."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import glint

ROOT = Path(__file__).parents[2]

# Frozen: docs/api.md promises it. An argument with a default may be added behind `*`.
CALLS = {
    "AdaFace": "m=0.4 h=0.333",
    "ArcFace": "m=0.5 straight_through=False",
    "Batch": "image flip label row position epoch step repeats=0",
    "ClassPool": "classes dim options * singles=0 **shared",
    "ClassPoolOptions": "* scale=32.0 threshold=0.0 block=1024 gemm='float32' slots=0",
    "ClassQueue": "classes dim options **shared",
    "ClassQueueOptions": "* scale=50.0 threshold=0.0 block=1024 gemm='float32' slots=0 gallery=1",
    "CombinedMargin": "m1=1.0 m2=0.0 m3=0.0",
    "CosFace": "m=0.4",
    "Dataset": "root",
    "GlintError": "code what * where='' hint=''",
    "Images": "size=112 flip=True augment='none' decoder=None verify=True pinned=False",
    "Order": "sampling=None block=None each=0 endless=False positives=0",
    "PartialFC": "classes dim options=None * margin masks=None neighbours=None world=None seed=0 "
    "dtype=torch.float32 ddp_mean=True tally=False",
    "PartialFCOptions": "* scale=64.0 threshold=0.0 block=1024 gemm='float32' rate=1.0 "
    "hard_ratio=0.0 rule='none' momentum=0.9 weight_decay=0.0005 storage='float32' kernels='auto' "
    "keep=67108864",
    "Stream": "dataset * labels=None batch rank=None world=None seed=0 workers=0 threads=0 "
    "drop_last=True order=None images=None columns=None",
    "create_backbone": "name embedding=512 **options",
    "find_pairs": "x_ND threshold * engine='auto' block=2048 device='cpu' limit=50000000 work=None "
    "progress=silent",
    "find_pairs_across": "x_ND y_MD threshold * engine='auto' device='cpu' limit=50000000 "
    "progress=silent",
    "find_pairs_in_ring": "x_nD threshold * group=None engine='auto' limit=50000000 "
    "progress=silent",
    "load_recogniser": "path * threads=None device=None reading=Reading()",
    "read_bin": "path",
    "tar_at_far": "distance_n same_n far",
    "ten_fold": "a_nD b_nD same_n folds=None",
    "to_input": "image_nHWC dtype=torch.float32 channels_last=False flip=None",
    "verify": "model pairs * flip=True batch=32 progress=silent",
    "PartialFC.forward": "feature_nD label_n * step=None counts=None rate=None",
    "PartialFC.update": "* step=None lr divide=1.0",
    "PartialFC.drop": "",
    "PartialFC.optimizer": "lr",
    "PartialFC.sharded": "",
    "PartialFC.state_rows": "",
    "PartialFC.load_rows": "fetch",
    "PartialFC.statistics": "",
    "Stream.batches": "epoch start_step=0 origin=0",
    "Stream.loader": "num_workers=0 **options",
    "Stream.view": "",
    "Stream.set_epoch": "epoch",
    "Stream.state_dict": "",
    "Stream.load_state_dict": "state_dict",
    "Dataset.__getitem__": "row",
    "Dataset.read": "row verify=True",
    "Dataset.rows_of": "label",
    "ClassPool.parts": "rows_n",
    "ClassPool.forward": "feature_nD label_n * step gallery_nD",
    "ClassPool.update": "* step lr divide=1.0",
    "ClassPool.drop": "",
    "ClassQueue.parts": "rows_n",
    "ClassQueue.forward": "feature_nD label_n * step gallery_nD",
    "ClassQueue.update": "* step lr divide=1.0",
    "ClassQueue.drop": "",
}


def made() -> object:
    spec = importlib.util.spec_from_file_location("make_api", ROOT / "docs" / "make_api.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(value: object) -> str:
    words, star = [], False
    for one in inspect.signature(value).parameters.values():  # type: ignore[arg-type]
        if one.kind is one.KEYWORD_ONLY and not star:
            words, star = [*words, "*"], True
        default = "" if one.default is one.empty else f"={value_of(one.default)}"
        words.append(("**" if one.kind is one.VAR_KEYWORD else "") + one.name + default)
    return " ".join(words[words[:1] == ["self"] :])


def value_of(default: object) -> str:
    if inspect.isfunction(default):
        return default.__name__
    return "Reading()" if type(default).__name__ == "Reading" else repr(default)


def test_names_and_signatures_are_frozen() -> None:
    assert glint.__all__ == sorted(glint.__all__) == [n for n in CALLS if "." not in n]
    found = {}
    for name in CALLS:
        value: object = glint
        for part in name.split("."):
            value = getattr(value, part)
        found[name] = call(value)
    assert found == CALLS
    assert set(glint.__all__) <= set(dir(glint))
    with pytest.raises(AttributeError, match="no attribute 'PartialFc'"):
        glint.PartialFc  # noqa: B018


def test_the_page_is_current_and_has_an_example_of_each() -> None:
    module = made()
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert module.page() == page, "run: make docs"  # type: ignore[attr-defined]
    parts = page.split("\n## `")[1:]
    assert sorted(part.split("`")[0] for part in parts) == glint.__all__
    for part in parts:
        name = part.split("`")[0]
        examples = part.split("```python run\n")[1:]
        assert any(name in one.split("```")[0] for one in examples), name
    methods = {
        f"{kind}.{one}"
        for kind, names in module.METHODS.items()  # type: ignore[attr-defined]
        for one in names.split()
    }
    assert methods == {name for name in CALLS if "." in name}


def test_types_are_declared_where_names_are_found() -> None:
    tree = ast.parse((ROOT / "glint" / "__init__.py").read_text(encoding="utf-8"))
    typed = next(one for one in tree.body if isinstance(one, ast.If))
    seen = {
        one.asname or one.name: (part.module, one.name)
        for part in typed.body
        if isinstance(part, ast.ImportFrom)
        for one in part.names
    }
    homes = {
        word.partition("=")[0]: (f"glint.{module}", word.partition("=")[2] or word)
        for module, words in glint._HOMES.items()
        for word in words.split()
    }
    assert seen == homes and sorted(homes) == glint.__all__


def test_nothing_inside_goes_through_the_public_names() -> None:
    """The contract between rooms does not look at what `glint` itself imports."""
    for path in (ROOT / "glint").rglob("*.py"):
        for one in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(one, ast.ImportFrom) and one.module == "glint":
                assert not {part.name for part in one.names} & {*glint.__all__}, path
            if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name):
                assert one.value.id != "glint" or one.attr not in glint.__all__, path


def test_import_loads_nothing() -> None:
    code = "import sys, glint\nassert not {'torch', 'numpy', 'pyarrow'} & {*sys.modules}\n"
    code += "from glint import GlintError\nassert 'numpy' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", code], check=True)


USER = """
from collections.abc import Iterator
import numpy as np
import torch
from glint import (
    ArcFace, Dataset, PartialFC, PartialFCOptions, Stream, create_backbone, find_pairs,
    load_recogniser, ten_fold, tar_at_far, to_input,
)

def train(path: str) -> Iterator[float]:
    stream = Stream(Dataset(path), batch=8)
    net = create_backbone("mbf", 128)
    head = PartialFC(stream.labels.classes, 128, PartialFCOptions(rate=0.1), margin=ArcFace())
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.SGD(net.parameters(), lr=0.1), head.optimizer(lr=0.1)
    ]
    for batch in stream.loader(num_workers=2):
        loss = head(net(to_input(batch.image, flip=batch.flip)), batch.label)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        yield loss.item()

def search(x: np.ndarray) -> int:
    return len(find_pairs(x, 0.6).a)

def judge(a: np.ndarray, b: np.ndarray, same: np.ndarray) -> float:
    rate = tar_at_far(((a - b) ** 2).sum(1), same, 1e-3)
    return ten_fold(a, b, same).accuracy + (rate or 0.0) + load_recogniser("x.onnx").dim
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_user_s_file_is_checked_strictly(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(USER)
    bad.write_text(
        "from glint import find_pairs\nfind_pairs('no array', 0.5)\nimport glint\nglint.No\n"
    )
    env = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent",
         "--ignore-missing-imports", "--cache-dir", str(tmp_path / "cache"), str(good), str(bad)],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    wrong = [line for line in done.stdout.splitlines() if "error:" in line]
    assert not [line for line in wrong if line.startswith("good.py")], done.stdout
    assert [line.split("[")[-1] for line in wrong] == ["arg-type]", "attr-defined]"], done.stdout
