"""Inputs as users have them: the shared cases, each taken rightly or refused by name.

The generators lie outside the repository, in $GLINT_SHARED/cases. What is right for each case is
written down here by hand: its people, as the generators number them, and how many images.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glint.errors import GlintError
from glint.evals import embed
from glint.pipelines.dataset import shard as stage
from glint.shards.sources import Rule, open_source
from glint.shards.verify import verify
from glint.stream.decode import decode_into

CASES = Path(os.environ.get("GLINT_SHARED", "/nowhere")) / "cases"
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not CASES.is_dir(), reason="GLINT_SHARED does not name a folder with cases/ in it"
)
Make = Callable[[str], Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Run a generator once; return where its cases are."""
    made: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            env = {**os.environ, "CASES": str(made[name]), "PYTHONDONTWRITEBYTECODE": "1"}
            env["PYTHONPATH"] = f"{CASES}{os.pathsep}{ROOT}"
            subprocess.run(
                [sys.executable, str(CASES / f"{name}.py")],
                env=env,
                check=True,
                capture_output=True,
            )
        return made[name]

    return run


# case: options, people, images; or what the refusal says
SPLIT = "containers in 2 folders: train"
TAKEN: dict[str, tuple[dict[str, Any], int, int] | str] = {
    "folders/a_mixed": ({}, 8, 24),
    "folders/a_mixed:": ({"label_depth": 1}, 4, 24),
    "folders/b_split": ({}, 8, 24),
    "folders/b_split:": ({"label_depth": 2}, 4, 24),
    "folders/b_split::": ({"label_depth": -1}, 4, 24),
    "folders/c_nas": ({}, 6, 30),
    "folders/d_thumbs": ({}, 40, 200),
    "folders/e_full": ({}, 6, 18),
    "folders/e_links": "no image was found; left out: 3 links to folders (--follow-links",
    "folders/e_links:": ({"follow_links": True}, 3, 9),
    "folders/f_filelinks:": ({"follow_links": True}, 6, 18),
    "folders/g_flat": ({}, 1, 18),
    "folders/g_flat:": ({"labels": "folders/g_flat/identity_CelebA.txt"}, 6, 18),
    "folders/g_flat::": ({"exclude": ("00000*",)}, 1, 8),
    "folders/h_suffix": ({}, 4, 28),
    "folders/i_meta": ({}, 40, 200),
    "tars/t_img2dataset": ({}, 6, 24),
    "tars/t_caption": "no sample has a label: 000000000 has jpg, json (caption, key), txt",
    "tars/t_caption:": ({"label_member": "txt"}, 6, 24),
    "tars/t_caption::": ({"unlabelled": True}, 24, 24),
    "tars/t_jsonname": ({}, 6, 24),
    "tars/t_jsonquoted": ({}, 6, 24),
    "tars/t_clsname": ({}, 6, 24),
    "tars/t_clsname:": ({"unlabelled": True}, 24, 24),
    "tars/t_dotted": ({}, 6, 24),
    "tars/t_txt": ({}, 6, 24),
    "tars/t_folderkey": ({}, 6, 24),
    "tars/t_sidecar": ({}, 6, 24),
    "tars/t_samekeys": ({}, 6, 24),
    "tars/t_apart": "members of one key do not stand together: 24 keys such as 000000",
    "tars/t_dotslash": ({}, 6, 24),
    "tars/t_float": ({}, 6, 24),
    "tars/t_nested": SPLIT,
    "tars/t_backslash": ({}, 6, 24),
    "parquet/p_category": ({}, 6, 24),
    "parquet/p_float": ({}, 6, 24),
    "parquet/p_rowid": ({}, 6, 24),
    "parquet/p_celeb": ({}, 6, 24),
    "parquet/p_filename": "--label-from REGEX a part of its text",
    "parquet/p_filename:": ({"label_from": "^([^/]+)/"}, 6, 24),
    "parquet/p_hf": ({}, 6, 24),
    "parquet/p_blobs": ({}, 6, 24),
    "parquet/p_default": ({}, 6, 24),
    "parquet/p_splits:": ({"exclude": ("test-*",)}, 6, 24),
    "parquet/p_paths": "its images are paths (/data/0_0.jpg), not bytes",
    "parquet/p_large": ({}, 6, 24),
    "parquet/p_large:": ({"label_column": "male"}, 2, 24),
    "parquet/p_arrow": ({}, 6, 24),
    "parquet/p_list": ({}, 6, 24),
    "parquet/p_two": ({}, 6, 24),
    "parquet/p_uint": ({}, 6, 24),
    "parquet/p_index": ({}, 6, 24),
    "parquet/p_onlyindex": "--unlabelled needs none",
    "parquet/p_onlyindex:": ({"unlabelled": True}, 24, 24),
}


@pytest.fixture(scope="module")
def groups() -> dict[bytes, int]:
    """Return who is on an image, by the image: the generators' own function draws them."""
    sys.path.insert(0, str(CASES))
    try:
        import common

        return {common.img(k, n): k for k in range(40) for n in range(14 if k < 6 else 5)}
    finally:
        sys.path.remove(str(CASES))


@pytest.mark.parametrize("case", TAKEN)
def test_a_case(case: str, make: Make, tmp_path: Path, groups: dict[bytes, int]) -> None:
    kind = case.split("/")[0]
    src, right = make(kind) / case.split("/")[1].rstrip(":"), TAKEN[case]
    if isinstance(right, str):
        with pytest.raises(GlintError) as caught:
            open_source(src)
        assert right in f"{caught.value} {caught.value.hint}"
        return
    told, people, images = right
    told = dict(told)
    if "labels" in told:
        told["labels"] = str(make(kind) / told["labels"].partition("/")[2])
    unlabelled = bool(told.pop("unlabelled", False))
    options = stage.Options(unlabelled=unlabelled)
    result = stage.shard(src, tmp_path / "out", options, Rule(**told))
    assert (result.identities, result.written, result.quarantined) == (people, images, 0)
    made: dict[bytes, set[int]] = {}  # by vanilla tarfile
    for path in sorted((tmp_path / "out" / "data").glob("*.tar")):
        with tarfile.open(path) as archive:
            data = {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
        for name, label in data.items():
            if name.endswith(".cls"):
                person = groups[data[name.replace(".cls", ".jpg")]]
                made.setdefault(label, set()).add(person)
    if people > 2 and not case.startswith("parquet/p_large:"):
        assert all(len(one) == 1 for one in made.values())  # no label has two people


def test_what_looks_wrong_is_told(make: Make) -> None:
    def told(case: str, **rule: Any) -> str:
        facts = open_source(make(case.split("/")[0]) / case.split("/")[1], Rule(**rule)).describe()
        return "\n".join([*facts["notes"], *facts["warnings"]])

    assert "person0 and person0/aligned are two; if they are one person: --label-depth 1" in told(
        "folders/a_mixed"
    )
    assert "(train/n000000, val/n000000): if n000000 is one person, --label-depth 2" in told(
        "folders/b_split"
    )
    assert "18 links lead out of SRC and are refused; --follow-links" in told("folders/f_filelinks")
    assert "all 18 images are under one identity" in told("folders/g_flat")
    assert "2 splits (test, train) are taken together; --exclude 'test-*'" in told(
        "parquet/p_splits"
    )
    assert told("folders/c_nas") == told("folders/i_meta") == told("tars/t_img2dataset") == ""
    left = open_source(make("folders") / "c_nas").describe()["left_out"]
    assert left == {"system: @eaDir": 6, "system: Thumbs.db": 6, "system: desktop.ini": 6}


def test_pieces_of_one_label_space(make: Make, tmp_path: Path) -> None:
    for case, people in (("folders/b_split", 4), ("tars/t_nested", 6)):
        src = make(case.split("/")[0]) / case.split("/")[1]
        out = tmp_path / str(people)
        result = stage.shard([src / "train", src / "val"], out, stage.Options(samples_per_shard=5))
        assert (result.identities, result.written) == (people, 24)
        again = stage.shard(
            [src / "train", src / "val"], tmp_path / f"{people}b",
            stage.Options(samples_per_shard=5), workers=2,
        )  # fmt: skip
        assert again.digest == result.digest


WHOLE = ["extraneous", "jfif_major", "sos_params", "adobe_xform"]


@pytest.mark.parametrize("name", [*WHOLE, "cut_eoi"])
def test_jpegs_that_every_viewer_decodes(make: Make, tmp_path: Path, name: str) -> None:
    src = make("jpegs") / f"wj_{name}"
    data = (src / "person0" / "web.jpg").read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        viewed = np.asarray(image.convert("RGB")).astype(int)
    out = np.empty((112, 112, 3), np.uint8)
    decode_into(data, out)  # the loader's
    for found in (out, embed.decode(data, 112, "")):  # and the evaluation's
        assert np.abs(found.astype(int) - viewed).mean() <= 2
    result = stage.shard(src, tmp_path / "out", stage.Options(decode=True))
    assert (result.written, result.quarantined) == (65, 0)
    assert result.notes.get("not-whole", 0) == (name == "cut_eoi")
    notes = verify(tmp_path / "out", decode=True).notes
    assert ("a part of 1 images is lost" in "".join(notes)) == (name == "cut_eoi")
