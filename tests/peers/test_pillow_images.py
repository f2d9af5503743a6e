"""The test images of Pillow's source package: what glint decodes is what Pillow gives.

Each is packed alone in a tar of 64 good ones, by glint's own road; GLINT_PILLOW_SDIST names the
package (`pip download pillow --no-binary pillow --no-deps`).
"""

from __future__ import annotations

import io
import os
import tarfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glint.shards import image, pixels
from glint.shards.image import Rejected

SDIST = Path(os.environ.get("GLINT_PILLOW_SDIST", "/nowhere"))
# 16 bits of grey: Pillow's own conversion to RGB cuts all above 255 off, glint keeps the high byte
ARGUED = {"i_trns.png"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SDIST.is_file(), reason="GLINT_PILLOW_SDIST names no package"),
]


def viewed(data: bytes) -> np.ndarray | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as opened:
                return np.asarray(opened.convert("RGB")).astype(int)
    except Exception:
        return None


def test_every_picture_is_pillow_s_or_refused_by_name() -> None:
    count: Counter[str] = Counter()
    differ = []
    with tarfile.open(SDIST) as archive:
        for member in archive:
            if not member.isfile() or "/Tests/images/" not in member.name:
                continue
            file = archive.extractfile(member)
            assert file is not None
            data, name = file.read(), member.name.rsplit("/", 1)[-1]
            theirs = viewed(data)
            try:
                image.look(data, image.FORMATS, True)
                ours = pixels.rgb(data).astype(int)
            except Rejected as why:
                # formats that glint does not take are refused by their name
                other = why.reason in ("unexpected-format", "not-an-image", "too-large")
                count["another format" if other else "both refuse"] += 1
                if theirs is not None and not other:
                    differ.append((name, why.reason))
                continue
            except ValueError as error:
                count["both refuse"] += 1
                if theirs is not None:
                    differ.append((name, str(error)))
                continue
            assert theirs is not None, f"{name}: glint decodes what Pillow refuses"
            if ours.shape != theirs.shape or np.abs(ours - theirs).mean() > 2:
                differ.append((name, "another picture"))
            count["decoded"] += 1
    assert [one for one in differ if one[0] not in ARGUED] == []
    assert count["decoded"] > 300, count
