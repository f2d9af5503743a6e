"""`glint align` on real photographs, held against insightface with the same detector."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from glint.pipelines.dataset.align import Align, Model, align
from glint.shards import pixels
from glint.shards.dataset import Dataset
from glint.shards.sources import open_source
from glint.shards.sources.rule import Rule

cv2 = pytest.importorskip("cv2")
pytest.importorskip("insightface")


@pytest.fixture(scope="module")
def detector(shared: Path) -> Path:
    return shared / "data" / "models" / "scrfd_500m_kps.onnx"


@pytest.fixture(scope="module")
def peer(detector: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from insightface.app import FaceAnalysis

    root = tmp_path_factory.mktemp("insightface")
    (root / "models" / "scrfd").mkdir(parents=True)
    shutil.copy(detector, root / "models" / "scrfd" / "det.onnx")
    app = FaceAnalysis(
        "scrfd", root=str(root), allowed_modules=["detection"], providers=["CPUExecutionProvider"]
    )
    app.prepare(ctx_id=-1, det_size=(640, 640))
    return app


def test_faces_points_and_crops_are_insightfaces(
    shared: Path, detector: Path, peer: Any, tmp_path: Path
) -> None:
    from insightface.utils.face_align import norm_crop

    heap, some = shared / "data" / "lfw" / "raw_sample_250.tar", 40
    part = tmp_path / "part.tar"
    photos = {}
    with tarfile.open(heap) as whole, tarfile.open(part, "w") as out:
        for member in [m for m in whole.getmembers() if m.isfile()][::3][:some]:
            data = whole.extractfile(member).read()  # type: ignore[union-attr]
            out.addfile(member, io.BytesIO(data))
            photos[member.name] = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    made = align(part, tmp_path / "out", Align(detector=Model(str(detector)), faces="all"))
    assert made.written >= made.read == some
    data = Dataset(tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "samples.parquet").to_pylist()
    found: dict[str, list[tuple[dict[str, Any], np.ndarray]]] = {}
    for i, row in enumerate(rows):
        found.setdefault(row["source"], []).append((row, pixels.rgb(data.read(i))))
    for name, photo in photos.items():
        faces = sorted(peer.get(photo), key=lambda f: -np.prod(f.bbox[2:] - f.bbox[:2]))
        assert len(faces) == len(found[name])
        for face, (row, crop) in zip(faces, found[name], strict=True):
            assert np.abs(np.array(row["points"]).reshape(5, 2) - face.kps).max() <= 0.5
            assert np.abs(np.array(row["box"]) - face.bbox).max() <= 1
            assert row["score"] == pytest.approx(face.det_score, abs=0.03)
            theirs = norm_crop(photo, face.kps)[..., ::-1].astype(int)
            assert np.abs(theirs - crop).mean() <= 2


def test_real_crops_are_known_again_and_kept(
    shared: Path, detector: Path, tmp_path: Path, jpeg: Callable[[int], bytes]
) -> None:
    source = open_source(shared / "data" / "lfw" / "train.rec")
    folder = tmp_path / "src" / "crops"
    folder.mkdir(parents=True)
    kept = {f"crops/{i}.jpg": source.read(i) for i in range(0, 12_000, 600)}
    for name, data in kept.items():
        (tmp_path / "src" / name).write_bytes(data)
    (folder / "none.jpg").write_bytes(jpeg(0))
    options = Align(detector=Model(str(detector)), unlabelled=True)
    made = align(tmp_path / "src", tmp_path / "out", options, Rule())
    assert made.notes == {"already-aligned": 20} and made.quarantine_reasons == {"no-face": 1}
    data = Dataset(tmp_path / "out")
    assert all(data.read(i) == kept[data.source[i]] for i in range(data.n))
