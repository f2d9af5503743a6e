"""How a source was read is kept: it is verified, continued and mended by what the manifest says."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glint.errors import MismatchError, UsageError
from glint.pipelines import balance, embed
from glint.pipelines.dataset import drop as taking
from glint.pipelines.dataset import shard as stage
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.shards.image import Rejected
from glint.shards.pixels import as_jpeg
from glint.shards.sources import Rule
from glint.shards.verify import verify

Jpeg = Callable[[int], bytes]
Small = stage.Options(samples_per_shard=3)


def tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def encoded(kind: str, seed: int, **options: Any) -> bytes:
    out, pixel = io.BytesIO(), np.random.default_rng(seed).integers(0, 256, (14, 14, 3), np.uint8)
    Image.fromarray(pixel).resize((112, 112)).save(out, kind, **options)
    return out.getvalue()


def compared(out: Path, *sources: Path, labels_file: str = "") -> dict[str, int]:
    result = verify(out, sources=sources, labels_file=labels_file)
    assert result.against is not None
    told = vars(result.against)
    assert result.ok == (told["compared"] > 0 and not told["other_label"]), result.shown
    return {name: told[name] for name in ("compared", "other_label", "missing", "unknown")}


def test_pieces_are_verified_together(tmp_path: Path, jpeg: Jpeg) -> None:
    for k, split in enumerate(("train", "val")):
        files = {f"{who}/{n}.jpg": jpeg(100 * k + 10 * i + n) for i, who in enumerate("abc")
                 for n in range(2)}  # fmt: skip
        tree(tmp_path / split, files)
    sources = [tmp_path / "train", tmp_path / "val"]
    result = stage.shard(sources, tmp_path / "out", Small, workers=2)
    assert (result.written, result.identities, result.shards) == (12, 3, 4)
    good = {"compared": 12, "other_label": 0, "missing": 0, "unknown": 0}
    assert compared(tmp_path / "out", *sources) == good
    again = stage.shard(sources, tmp_path / "out", Small)  # read again, all there
    assert again.digest == result.digest
    (tmp_path / "val" / "a" / "0.jpg").rename(tmp_path / "val" / "b" / "9.jpg")
    assert not verify(tmp_path / "out", sources=sources).ok


def test_a_rule_is_kept_and_decides(tmp_path: Path, jpeg: Jpeg) -> None:
    root = tree(
        tmp_path / "s", {f"x/p{k}_{n}.jpg": jpeg(10 * k + n) for k in (0, 1) for n in (0, 1)}
    )
    good = {"compared": 4, "other_label": 0, "missing": 0, "unknown": 0}
    rules: dict[str, dict[str, Any]] = {
        "from": {"label_from": r"(p\d)_"}, "depth": {"label_depth": 1}, "plain": {},
    }  # fmt: skip
    for name, rule in rules.items():
        stage.shard(root, tmp_path / name, Small, Rule(**rule))
        assert compared(tmp_path / name, root) == good
    assert Dataset(tmp_path / "from").classes == 2 and Dataset(tmp_path / "plain").classes == 1
    stage.shard(root, tmp_path / "un", stage.Options(unlabelled=True))
    assert compared(tmp_path / "un", root) == good
    path = tmp_path / "list.csv"
    path.write_text("file,label\np0_0.jpg,ann\np1_0.jpg,bob\n")
    stage.shard(root, tmp_path / "list", Small, Rule(labels=str(path)))
    with pytest.raises(UsageError, match=r"the labels came from a list, list\.csv"):
        verify(tmp_path / "list", sources=[root])
    assert compared(tmp_path / "list", root, labels_file=str(path))["compared"] == 2
    path.write_text("file,label\np0_0.jpg,ann\np1_0.jpg,cyd\n")
    with pytest.raises(UsageError, match="not the list that the dataset was made with"):
        verify(tmp_path / "list", sources=[root], labels_file=str(path))
    with pytest.raises(MismatchError, match="GL0006"):
        stage.shard(root, tmp_path / "list", Small, Rule(labels=str(path)))
    with pytest.raises(MismatchError, match="GL0006"):
        stage.shard(root, tmp_path / "from", Small, Rule(label_depth=1))


def test_what_is_no_jpeg_becomes_one(tmp_path: Path) -> None:
    kinds = ("PNG", "TIFF", "BMP", "JPEG")
    files = {f"{who}/{n}.{kind}": encoded(kind, 10 * k + n)
             for k, who in enumerate("ab") for n, kind in enumerate(kinds)}  # fmt: skip
    root = tree(tmp_path / "s", files)
    result = stage.shard(root, tmp_path / "out", stage.Options(to_jpeg=95))
    assert (result.written, result.notes) == (8, {"made-jpeg": 6})
    data = Dataset(tmp_path / "out")
    for i in range(data.n):
        source = files[data.source[i]]
        kept = data.read(i)
        with Image.open(io.BytesIO(source)) as before, Image.open(io.BytesIO(kept)) as after:
            assert after.format == "JPEG"
            both = [np.asarray(one.convert("RGB")).astype(int) for one in (before, after)]
        assert np.abs(both[0] - both[1]).mean() < 4
        assert (kept == source) == data.source[i].endswith("JPEG")
    assert compared(tmp_path / "out", root)["compared"] == 8


@pytest.mark.parametrize("on_exif", ["reject", "keep"])
def test_what_is_turned_is_no_upright_jpeg(tmp_path: Path, on_exif: str) -> None:
    turn = Image.Exif()
    turn[0x0112] = 6
    forms: dict[str, dict[str, Any]] = {"png": {}, "webp": {"lossless": True}, "tiff": {}}
    files = {f"a/1.{k}": encoded(k, 1, exif=turn, **more) for k, more in forms.items()}
    files["a/big.tiff"] = encoded("TIFF", 1, exif=turn, big_tiff=True)
    files |= {f"b/{n}.png": encoded("PNG", n) for n in range(2, 8)}
    root = tree(tmp_path / "s", files)
    options = stage.Options(to_jpeg=95, on_exif=on_exif)
    result = stage.shard(root, tmp_path / "out", options)
    kept = on_exif == "keep"  # but for TIFF, which the decoder turns
    assert (result.written, result.quarantined) == ((8, 2) if kept else (6, 4))
    assert result.notes == {"made-jpeg": result.written, **({"exif-rotated": 2} if kept else {})}
    assert compared(tmp_path / "out", root)["compared"] == result.written
    data, stored = Dataset(tmp_path / "out"), np.asarray(Image.open(io.BytesIO(encoded("PNG", 1))))
    for i in range(data.n if kept else 0):
        if data.source[i] in ("a/1.png", "a/1.webp"):
            made = np.asarray(Image.open(io.BytesIO(data.read(i)))).astype(int)
            assert np.abs(made - stored).mean() < 4


def test_grey_whose_white_is_unknown_is_no_jpeg() -> None:
    ramp = np.linspace(0, 1, 64).reshape(8, 8)

    def tiff(array: np.ndarray, **more: Any) -> bytes:
        Image.fromarray(array).save(out := io.BytesIO(), "TIFF", **more)
        return out.getvalue()

    made = as_jpeg(tiff((ramp * 65535).astype(np.uint16)), 100, Counter())
    made_HW = np.asarray(Image.open(io.BytesIO(made)).convert("L"))
    assert np.abs(made_HW - ramp * 255).max() < 4
    inverted = {"tiffinfo": {262: 0}}
    for data in (
        tiff(ramp.astype(np.float32)), tiff((ramp * 255).astype(np.int32)),
        tiff((ramp * 65535).astype(np.uint16), **inverted),
    ):  # fmt: skip
        with pytest.raises(Rejected, match=r"undecodable.*grey of"):
            as_jpeg(data, 100, Counter())


class Plain:
    """Embeds a crop as its mean colours in four corners, or all crops as one."""

    name, dim, size, digest = "plain", 12, 112, "sha256:x"

    def __init__(self, same: bool = False) -> None:
        self.same = same

    def embed(self, image_nHWC: np.ndarray) -> np.ndarray:
        """Return float32 (n, 12)."""
        corner = image_nHWC.reshape(-1, 2, 56, 2, 56, 3).mean((2, 4)).reshape(-1, 12)
        return np.float32(corner * 0 + 1 if self.same else corner - 127)


def test_what_gives_no_picture_is_left_out_without_a_rewrite(tmp_path: Path) -> None:
    files = {f"{who}/{n}.jpg": encoded("JPEG", 10 * k + n)
             for k, who in enumerate("abcd") for n in range(4)}  # fmt: skip
    broken = bytearray(files["a/0.jpg"])
    at = broken.index(b"\xff\xc4")
    broken[at + 4 : at + 40] = b"\xff" * 36  # a table of codes that is none
    files["a/0.jpg"] = bytes(broken)
    root = tree(tmp_path / "s", files)
    at_the_door = stage.shard(root, tmp_path / "clean", stage.Options(decode=True))
    assert at_the_door.quarantine_reasons == {"undecodable": 1} and at_the_door.written == 15
    stage.shard(root, tmp_path / "out")
    found = verify(tmp_path / "out", decode=True)
    (key,) = [problem.key for problem in found.problems]
    assert not found.ok and "it gives no picture" in found.problems[0].what
    data = Dataset(tmp_path / "out")
    made = embed.embed(data, Plain(), tmp_path / "emb")
    assert made.failures == {"not-a-jpeg": 1} and made.warning is None
    assert taking.failed_keys(tmp_path / "out", tmp_path / "emb") == [key]
    before = sorted((tmp_path / "out" / "data").glob("*.tar"))[0].read_bytes()
    taking.drop(tmp_path / "out", [], "does not decode", keys=[str(key)])
    assert sorted((tmp_path / "out" / "data").glob("*.tar"))[0].read_bytes() == before
    table = labels.current(data.root, data.classes)
    assert (table.sample_target(data.label) < 0).sum() == 1 and table.classes == 4
    assert balance.balance(Dataset(tmp_path / "out"), balance.Options()).images == 15
    with pytest.raises(Exception, match="not of this dataset"):
        taking.failed_keys(tmp_path / "clean", tmp_path / "emb")


def test_an_embedder_that_says_one_thing_is_warned_of(tmp_path: Path) -> None:
    files = {f"{who}/{n}.jpg": encoded("JPEG", 10 * k + n)
             for k, who in enumerate("abcd") for n in range(4)}  # fmt: skip
    stage.shard(tree(tmp_path / "s", files), tmp_path / "out")
    made = embed.embed(Dataset(tmp_path / "out"), Plain(same=True), tmp_path / "emb")
    assert made.warning is not None and "the model says the same of all" in made.warning
