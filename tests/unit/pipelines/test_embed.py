"""Embedding: right rows, honest failures, and the same bytes after any stop."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg

from glint.errors import BusyError, InputError, MismatchError, UsageError
from glint.files import atomic
from glint.pipelines import embed as stage
from glint.results import to_json
from glint.shards.embeddings import centres, load


class Faces:
    """Seventy 112x112 JPEGs of nine identities (the last without an image), some of them bad."""

    n, classes, digest = 70, 9, "sha256:faces"

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.label = rng.integers(0, 8, self.n).astype(np.int64)
        self.label[:8] = np.arange(8)
        self.key = [f"{i:09d}" for i in range(self.n)]
        shade = rng.integers(0, 256, (self.n, 7, 7, 3), np.uint8)
        self.image = np.repeat(np.repeat(shade, 16, 1), 16, 2)
        self.jpeg = [
            simplejpeg.encode_jpeg(np.ascontiguousarray(i), quality=95) for i in self.image
        ]

    def read(self, row: int) -> bytes:
        if row == 11:
            raise InputError("GL0303", "checksum differs", where="train-000000.tar")
        if row == 12:
            return b"not a picture"
        if row == 13:
            return self.jpeg[row][:900]
        if row == 14:
            return simplejpeg.encode_jpeg(np.zeros((64, 64, 3), np.uint8))
        return self.jpeg[row]


class Projector:
    """A recogniser that projects mean colours of image quarters; may stop after some calls."""

    name, dim, size = "projector", 6, 112

    def __init__(self, digest: str = "sha256:one", stop_after: int = 10**9) -> None:
        self.digest, self.calls, self.stop_after = digest, 0, stop_after
        self.weight = np.random.default_rng(1).standard_normal((12, 6)).astype(np.float32)

    def embed(self, image_nHWC: np.ndarray) -> np.ndarray:
        self.calls += 1
        if self.calls > self.stop_after:
            raise KeyboardInterrupt
        assert image_nHWC.dtype == np.uint8
        assert image_nHWC.shape[1:] == (112, 112, 3)
        x = image_nHWC.reshape(-1, 2, 56, 2, 56, 3).mean((2, 4)).reshape(len(image_nHWC), 12)
        return (x.astype(np.float32) - 127.5) @ self.weight


def contents(folder: Path) -> dict[str, str]:
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()
    }


def run(out: Path, model: Projector | None = None, **options: object) -> Any:
    return stage.embed(Faces(), model or Projector(), out, batch=7, block=16, **options)


def test_rows_centres_and_failures(tmp_path: Path) -> None:
    faces, model = Faces(), Projector()
    got = run(tmp_path / "emb", dtype="float32")
    assert to_json(got) == {
        "schema": "glint/embed-result@1",
        "images": 70,
        "dim": 6,
        "failed": 4,
        "out": str(tmp_path / "emb"),
        "failures": {"damaged": 1, "not-a-jpeg": 2, "wrong-size": 1},
        "empty_classes": 1,
        "centres": True,
    }
    rows = np.load(tmp_path / "emb/samples.npy")
    bad = [11, 12, 13, 14]
    assert np.isnan(rows[bad]).all()
    good = np.setdiff1d(np.arange(70), bad)
    images = np.stack([simplejpeg.decode_jpeg(faces.jpeg[i]) for i in good])
    raw = model.embed(images).astype(np.float64)
    norm = np.linalg.norm(raw, axis=1)
    np.testing.assert_allclose(rows[good], raw / norm[:, None], atol=1e-6)

    table = pq.read_table(tmp_path / "emb/samples.parquet")
    assert table["key"].to_pylist() == faces.key
    np.testing.assert_allclose(np.array(table["norm"])[good], norm, rtol=1e-6)
    assert [table["status"].to_pylist()[i] for i in (10, *bad)] == [
        "ok",
        "damaged",
        "not-a-jpeg",
        "not-a-jpeg",
        "wrong-size",
    ]

    centre = np.load(tmp_path / "emb/centres.npy")
    assert centre.dtype == np.float32
    assert np.isnan(centre[8]).all()
    for label in range(8):
        mine = good[faces.label[good] == label]
        mean = rows[mine].astype(np.float64).mean(0)
        np.testing.assert_allclose(centre[label], mean / np.linalg.norm(mean), atol=1e-6)


def test_half_precision_by_default(tmp_path: Path) -> None:
    run(tmp_path / "a")
    run(tmp_path / "b", dtype="float32")
    half, full = np.load(tmp_path / "a/samples.npy"), np.load(tmp_path / "b/samples.npy")
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, full.astype(np.float16))


def test_flip_is_the_sum_with_the_mirror_image(tmp_path: Path) -> None:
    run(tmp_path / "emb", flip=True, dtype="float32")
    image = simplejpeg.decode_jpeg(Faces().jpeg[0])[None]
    raw = Projector().embed(image) + Projector().embed(image[:, :, ::-1])
    row = np.load(tmp_path / "emb/samples.npy")[0]
    np.testing.assert_allclose(row, (raw / np.linalg.norm(raw))[0], atol=1e-6)


@pytest.mark.parametrize("stop_after", [0, 1, 3, 6, 9])
def test_continues_after_a_stop(tmp_path: Path, stop_after: int) -> None:
    whole = Projector()
    run(tmp_path / "whole", whole)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "emb", Projector(stop_after=stop_after))
    assert not (tmp_path / "emb/samples.npy").exists()
    rest = Projector()
    run(tmp_path / "emb", rest)
    assert contents(tmp_path / "emb") == contents(tmp_path / "whole")
    if stop_after >= 3:
        assert rest.calls < whole.calls
    again = Projector()
    run(tmp_path / "emb", again)
    assert again.calls == 0


def test_a_block_that_changed_on_disk_is_embedded_again(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "emb", Projector(stop_after=6))
    rows = np.load(tmp_path / "emb/_glint/samples.npy", mmap_mode="r+")
    rows[0, 0] += 1
    rows.flush()
    run(tmp_path / "emb")
    assert contents(tmp_path / "emb") == contents(tmp_path / "whole")


def test_continues_after_a_stop_while_finishing(tmp_path: Path, monkeypatch) -> None:
    run(tmp_path / "whole")

    def fail(path: Path, value: object) -> None:
        if path.name == "embeddings.json":
            raise KeyboardInterrupt
        real(path, value)

    real = atomic.write_json
    monkeypatch.setattr(atomic, "write_json", fail)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "emb")
    monkeypatch.undo()
    model = Projector()
    run(tmp_path / "emb", model)
    assert model.calls == 0
    assert contents(tmp_path / "emb") == contents(tmp_path / "whole")


@pytest.mark.parametrize("finished", [True, False])
def test_another_model_is_refused(tmp_path: Path, finished: bool) -> None:
    if finished:
        run(tmp_path)
    else:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, Projector(stop_after=4))
    with pytest.raises(MismatchError, match=r"GL0006.*model: sha256:one there, sha256:two now"):
        run(tmp_path, Projector("sha256:two"))
    with pytest.raises(MismatchError, match="flip: False there, True now"):
        run(tmp_path, flip=True)


def test_two_runs_on_one_folder(tmp_path: Path) -> None:
    (tmp_path / "_glint").mkdir()
    with atomic.lock(tmp_path / "_glint/lock"), pytest.raises(BusyError, match="GL0005"):
        run(tmp_path)


def test_foreign_rows_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "samples.npy").write_bytes(b"mine")
    with pytest.raises(BusyError, match="GL0004"):
        run(tmp_path)
    assert (tmp_path / "samples.npy").read_bytes() == b"mine"


def test_no_image_at_all(tmp_path: Path) -> None:
    faces = Faces()
    faces.read = lambda row: b"?"
    with pytest.raises(InputError, match=r"none of 70 images could be embedded.*not-a-jpeg': 70"):
        stage.embed(faces, Projector(), tmp_path)


def test_a_model_that_gives_nan(tmp_path: Path) -> None:
    class Broken(Projector):
        def embed(self, image_nHWC: np.ndarray) -> np.ndarray:
            raw = super().embed(image_nHWC)
            raw[0] = np.nan
            return raw

    got = stage.embed(Faces(), Broken(), tmp_path, batch=70)
    assert got.failures["not-finite"] == 1


def test_bad_dtype(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected float16 or float32, found 'int8'"):
        run(tmp_path, dtype="int8")


def test_trimmed_centres_leave_far_samples_out() -> None:
    near = np.tile([1.0, 0, 0], (6, 1))
    rows = np.concatenate([near, [[0, 1.0, 0]], [[np.nan] * 3], [[0, 0, 1.0]]])
    label = np.array([0] * 8 + [2])
    plain, trimmed = (centres(rows, label, 3, trim=t) for t in (False, True))
    assert plain[0, 1] > 0.1
    np.testing.assert_array_equal(trimmed[0], [1, 0, 0])
    assert np.isnan(plain[1]).all()
    np.testing.assert_array_equal(trimmed[2], [0, 0, 1])


def test_load_checks_that_embeddings_fit(tmp_path: Path) -> None:
    run(tmp_path / "emb")
    good = load(tmp_path / "emb", "sha256:faces", images=70, classes=9)
    assert good.sample_ND.shape == (70, 6)
    assert good.centre_CD.shape == (9, 6)
    with pytest.raises(MismatchError, match=r"GL0402.*made from dataset sha256:faces, expected x"):
        load(tmp_path / "emb", "x", images=70, classes=9)
    with pytest.raises(InputError, match=r"GL0402.*expected embeddings, found no embeddings.json"):
        load(tmp_path, "sha256:faces", images=70, classes=9)
    np.save(tmp_path / "emb/centres.npy", np.zeros((8, 6), np.float32))
    with pytest.raises(InputError, match=r"expected 9 rows of floats, found float32 .8, 6."):
        load(tmp_path / "emb", "sha256:faces", images=70, classes=9)
    (tmp_path / "emb/samples.npy").write_bytes(b"\x93NUMPY" + b"\0" * 20)
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path / "emb", "sha256:faces", images=70, classes=9)
    about = json.loads((tmp_path / "emb/embeddings.json").read_text())
    assert about["model"] == "sha256:one"


@pytest.mark.parametrize("name", ["samples.npy", "centres.npy"])
def test_load_sees_one_changed_bit(tmp_path: Path, name: str) -> None:
    run(tmp_path / "emb")
    path = tmp_path / "emb" / name
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"GL0402.*{name}: expected the checksum xxh3:"):
        load(tmp_path / "emb", "sha256:faces", images=70, classes=9)
    with pytest.raises(InputError, match=rf"GL0402.*{name}: expected the checksum xxh3:"):
        run(tmp_path / "emb")  # finished: the same command says so too
    path.unlink()
    with pytest.raises(InputError, match=rf"GL0402.*{name}: cannot be read") as caught:
        run(tmp_path / "emb")
    assert "delete this folder" in str(caught.value.hint)


def test_embeddings_without_checksums_are_refused(tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "embeddings.json"
    about = json.loads(path.read_text())
    files = about.pop("files")
    assert sorted(files) == ["centres.npy", "samples.npy"]
    atomic.write_json(path, about)
    with pytest.raises(InputError, match=r"GL0402.*expected the checksum None"):
        load(tmp_path, "sha256:faces", images=70, classes=9)
    atomic.write_json(path, {**about, "format": "glint/embeddings@1"})
    with pytest.raises(InputError, match=r"GL0402.*expected format 'glint/embeddings@2'"):
        load(tmp_path, "sha256:faces", images=70, classes=9)
    with pytest.raises(MismatchError, match=r"GL0006.*format: glint/embeddings@1 there"):
        run(tmp_path)


def tree(root: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("file", "text", "what"),
    [
        ("manifest.json", '{"format": "glint/dataset@1"}', "this is a dataset"),
        ("notes.txt", "mine", "not empty and holds no embeddings"),
        ("conflicts.json", '{"format": "glint/conflicts@1"}', "holds no embeddings"),
        ("embeddings.json", '{"format": "mine"}', "holds no embeddings"),
        ("_glint/plan.json", '{"kind": "glint/plan@1"}', "holds no embeddings"),
    ],
)
def test_a_foreign_folder_is_left_as_it_was(
    tmp_path: Path, file: str, text: str, what: str
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    with pytest.raises(BusyError, match=f"GL0004.*{what}"):
        run(tmp_path)
    assert tree(tmp_path) == {str(tmp_path / file): text.encode()}
    assert sorted(p.name for p in tmp_path.iterdir()) == [file.split("/")[0]]


def test_out_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "emb").write_text("mine")
    with pytest.raises(BusyError, match=r"GL0004.*expected a folder, found a file"):
        run(tmp_path / "emb")
    assert (tmp_path / "emb").read_text() == "mine"


def precious(folder: Path) -> dict[str, bytes]:
    """Give a folder of somebody else with files named as those of glint, and others."""
    folder.mkdir()
    names = ("thesis.txt", "plan.json", "journal.jsonl", "samples.npy", "lock", "a-000001.pairs")
    for name in names:
        (folder / name).write_bytes(b"precious " + name.encode())
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("finished", [False, True])
def test_a_linked_private_folder_is_refused_and_nothing_is_lost(
    tmp_path: Path, finished: bool
) -> None:
    held = precious(tmp_path / "other")
    if finished:
        run(tmp_path / "out")
        (tmp_path / "out/_glint/lock").unlink()
        (tmp_path / "out/_glint").rmdir()
    else:
        (tmp_path / "out").mkdir()
    (tmp_path / "out/_glint").symlink_to(tmp_path / "other")
    with pytest.raises(BusyError, match=r"GL0004.*a symbolic link"):
        run(tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "other").iterdir()} == held


def test_what_lies_beside_the_own_files_stays(tmp_path: Path) -> None:
    run(tmp_path / "out")
    (tmp_path / "out/_glint/mine.txt").write_text("mine")
    run(tmp_path / "out")
    (tmp_path / "out/embeddings.json").unlink()  # made again
    with pytest.raises(BusyError):
        run(tmp_path / "out")
    assert (tmp_path / "out/_glint/mine.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["lock", "journal.jsonl", "samples.npy", "norm.npy", "pieces"])
@pytest.mark.parametrize("dangling", [False, True])
def test_no_private_file_is_written_through_a_link(
    tmp_path: Path, name: str, dangling: bool
) -> None:
    """Also where the link appears after the folder was looked at."""
    victim = tmp_path / "victim"
    if not dangling:
        victim.write_bytes(b"x" * 4096)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", Projector(stop_after=5))
    path = tmp_path / "out/_glint" / name
    path.unlink(missing_ok=True)
    path.symlink_to(victim)
    with pytest.raises(BusyError, match=r"GL0004.*a symbolic link"):
        run(tmp_path / "out")
    assert not victim.exists() if dangling else victim.read_bytes() == b"x" * 4096
