"""Files that other programs' own writers make here, taken by glint: extra `peers`."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glint.pipelines.dataset import shard as stage
from glint.shards.dataset import Dataset
from glint.shards.sources import Rule

PEOPLE = ["Ann", "Bo", "Cy"]
Jpeg = Callable[[int], bytes]


@pytest.fixture
def faces(jpeg: Jpeg) -> dict[bytes, str]:
    return {jpeg(10 * k + n): person for k, person in enumerate(PEOPLE) for n in range(3)}


def check(src: Any, out: Path, truth: dict[bytes, str], **rule: Any) -> None:
    """Shard it; every image stands under its person, whatever the labels are called."""
    result = stage.shard(src, out, stage.Options(), Rule(**rule))
    assert (result.written, result.quarantined, result.identities) == (9, 0, 3)
    data = Dataset(out)
    pairs = Counter((int(data.label[i]), truth[data.read(i)]) for i in range(data.n))
    assert len(pairs) == 3 and set(pairs.values()) == {3}


@pytest.mark.parametrize("kind", ["cls", "json", "txt", "name"])
def test_webdataset_s_shard_writer(tmp_path: Path, faces: dict[bytes, str], kind: str) -> None:
    wds = pytest.importorskip("webdataset")
    (tmp_path / "w").mkdir()
    with wds.ShardWriter(str(tmp_path / "w" / "%06d.tar"), maxcount=4, verbose=0) as sink:
        for i, (data, person) in enumerate(faces.items()):
            number = PEOPLE.index(person)
            label: dict[str, Any] = {
                "cls": {"cls": number},
                "json": {"json": {"label": person, "key": i}},
                "txt": {"txt": str(number)},
                "name": {"cls": person},
            }[kind]
            if kind == "name":
                label = {"cls": person.encode()}
            sink.write({"__key__": f"{i:06d}", "jpg": data, **label})
    check(tmp_path / "w", tmp_path / "out", faces)


@pytest.fixture
def table(faces: dict[bytes, str]) -> Any:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=PEOPLE)}
    )
    rows = {"image": [{"bytes": data, "path": None} for data in faces],
            "label": [PEOPLE.index(person) for person in faces.values()]}  # fmt: skip
    return datasets.Dataset.from_dict(rows, features=features)


def test_datasets_to_parquet(tmp_path: Path, faces: dict[bytes, str], table: Any) -> None:
    table.to_parquet(str(tmp_path / "train.parquet"))
    check(tmp_path / "train.parquet", tmp_path / "out", faces)
    names = Dataset(tmp_path / "out").identities().column("name").to_pylist()
    assert names == PEOPLE


def test_datasets_save_to_disk(tmp_path: Path, faces: dict[bytes, str], table: Any) -> None:
    table.save_to_disk(str(tmp_path / "saved"))
    check(tmp_path / "saved", tmp_path / "out", faces)


def test_datasets_imagefolder(tmp_path: Path, faces: dict[bytes, str]) -> None:
    rows = []
    (tmp_path / "folder" / "train").mkdir(parents=True)
    for i, (data, person) in enumerate(faces.items()):
        (tmp_path / "folder" / "train" / f"{i}.jpg").write_bytes(data)
        rows.append({"file_name": f"{i}.jpg", "label": person})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "folder" / "train" / "metadata.jsonl").write_text(text)
    datasets = pytest.importorskip("datasets")
    assert (
        len(datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "folder"))["train"]) == 9
    )
    labels = str(tmp_path / "folder" / "train" / "metadata.jsonl")
    check(tmp_path / "folder", tmp_path / "out", faces, labels=labels)


def test_img2dataset(tmp_path: Path, faces: dict[bytes, str]) -> None:
    img2dataset = pytest.importorskip("img2dataset")
    rows = []
    for i, (data, person) in enumerate(faces.items()):
        (tmp_path / f"{i}.jpg").write_bytes(data)
        rows.append({"url": (tmp_path / f"{i}.jpg").as_uri(), "identity": person})
    (tmp_path / "urls.json").write_text(json.dumps(rows))
    img2dataset.download(
        url_list=str(tmp_path / "urls.json"), input_format="json", url_col="url",
        output_folder=str(tmp_path / "w"), output_format="webdataset", processes_count=1,
        thread_count=1, resize_mode="no", encode_quality=100, save_additional_columns=["identity"],
        number_sample_per_shard=5, disable_all_reencoding=True,
    )  # fmt: skip
    check(tmp_path / "w", tmp_path / "out", faces)


def test_torch_s_exporter(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    torch = pytest.importorskip("torch")
    from glint.models.recogniser import open_model

    net = torch.nn.Sequential(
        torch.nn.AvgPool2d(16), torch.nn.Flatten(), torch.nn.Linear(3 * 7 * 7, 8)
    ).eval()
    stream = io.BytesIO()
    torch.onnx.export(net, (torch.zeros(1, 3, 112, 112),), stream, dynamo=False,
                      input_names=["x"], output_names=["y"])  # fmt: skip
    (tmp_path / "net.onnx").write_bytes(stream.getvalue())
    crops = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), np.uint8)
    found = open_model(tmp_path / "net.onnx", device="cpu").embed(crops)
    with torch.no_grad():
        pixel = torch.from_numpy(crops).permute(0, 3, 1, 2).float().sub(127.5).div(127.5)
        assert np.abs(found - net(pixel).numpy()).max() < 1e-4
