"""Record sets that a real MXNet wrote, sharded, and read by readers that know nothing of glint."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest
import webdataset as wds

from glint.pipelines.dataset import shard as stage
from glint.shards.dataset import Dataset

SETS = ("ms1m", "recbuilder", "shufrec", "im2rec", "bigids")


def expected(folder: Path, name: str) -> list[tuple[str, str]]:
    """Give (sha256, source label) of every image, in key order, as MXNet or its .lst says."""
    if name == "im2rec":
        lines = (folder / name / "train.lst").read_text().splitlines()
        return [("", str(int(float(line.split("\t")[1])))) for line in lines]
    records = json.loads((folder / "expected.json").read_text())["sets"][name]
    return [(r["sha256"], str(int(r["label"][0]))) for r in records if r["payload_len"]]


@pytest.mark.parametrize("name", SETS)
def test_webdataset_and_tarfile_read_what_mxnet_wrote(
    shared: Path, tmp_path: Path, name: str
) -> None:
    folder = shared / "peers" / "mxnet-recordio"
    if not folder.is_dir():
        pytest.skip(f"no record sets in {folder}")
    want = expected(folder, name)
    trees = []
    for run in ("one", "two"):
        out = tmp_path / run
        got = stage.shard(folder / name, out, stage.Options(7), workers=1)
        assert got.read == got.written == len(want) and not got.quarantined
        trees.append(
            {
                str(p.relative_to(out)): p.read_bytes()
                for p in sorted(out.rglob("*"))
                if p.is_file() and "_glint" not in p.parts
            }
        )
    assert trees[0] == trees[1]

    data = Dataset(tmp_path / "one")
    label_of = {
        str(row["label"]): str(row["source_label"]) for row in data.identities().to_pylist()
    }
    tars = sorted((tmp_path / "one" / "data").glob("*.tar"))
    by_webdataset = [
        (sample["__key__"], sample["jpg"], sample["cls"].decode())
        for sample in wds.WebDataset([str(t) for t in tars], shardshuffle=False)
    ]
    by_tarfile: dict[str, dict[str, bytes]] = {}
    for path in tars:
        with tarfile.open(path) as tar:
            for member in tar:
                key, kind = member.name.split(".")
                file = tar.extractfile(member)
                assert file is not None
                by_tarfile.setdefault(key, {})[kind] = file.read()
    assert by_webdataset == [
        (key, parts["jpg"], parts["cls"].decode()) for key, parts in by_tarfile.items()
    ]
    seen = [
        (hashlib.sha256(jpg).hexdigest() if name != "im2rec" else "", label_of[label])
        for _, jpg, label in by_webdataset
    ]
    assert sorted(seen) == sorted(want)
    assert [data.read(row) for row in range(data.n)] == [jpg for _, jpg, _ in by_webdataset]
