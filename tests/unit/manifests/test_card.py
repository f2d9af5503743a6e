from __future__ import annotations

from pathlib import Path

import pytest

from glint.errors import UsageError
from glint.manifests import card


def test_a_card_by_name() -> None:
    glint360k = card.read("glint360k")
    assert (glint360k.identities, glint360k.images) == (360_232, 17_091_657)
    assert glint360k.format == "recordio"
    assert not glint360k.commercial
    assert len(glint360k.md5["train.rec"]) == 32


def test_a_card_that_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('title = "X"\nimages = 0\nlicense = "MIT"\n[md5]\n"a" = "12"\n')
    with pytest.raises(UsageError) as caught:
        card.read(file)
    what = caught.value.what
    assert "images: expected a number >= 1, found 0" in what
    assert "license: unknown key, did you mean licence?" in what
    assert "licence: missing" in what
    assert "md5.a: expected" in what
