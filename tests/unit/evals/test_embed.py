"""From JPEGs to figures: mirrored images, repeats, sizes, pairs tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from glint.errors import InputError, UsageError
from glint.evals.embed import decode, embed_jpegs, verify
from glint.evals.packs import Pairs
from glint.evals.pairs import read_table, ten_fold

Jpeg = Callable[..., bytes]


def left_and_right(image_nHWC: np.ndarray) -> np.ndarray:
    """Embed as the mean colours of the two halves: changes when mirrored."""
    halves = [image_nHWC[:, :, :56], image_nHWC[:, :, 56:]]
    return np.concatenate([h.astype(np.float32).mean((1, 2)) for h in halves], axis=1)


def test_the_mirrored_image_is_added(jpeg: Jpeg) -> None:
    images = [jpeg(i) for i in range(5)]
    pixels = np.stack([decode(image, 112, "") for image in images])
    plain = embed_jpegs(left_and_right, images, flip=False)
    assert np.array_equal(plain, left_and_right(pixels))
    both = embed_jpegs(left_and_right, images, flip=True)
    assert np.allclose(both, plain + plain[:, [3, 4, 5, 0, 1, 2]], atol=1e-3)
    assert both.dtype == np.float64
    for batch in (1, 2, 3, 5, 100):
        assert np.array_equal(embed_jpegs(left_and_right, images, batch=batch), both)


def test_an_image_that_repeats_is_embedded_once(jpeg: Jpeg) -> None:
    seen = []

    def count(image_nHWC: np.ndarray) -> np.ndarray:
        seen.append(len(image_nHWC))
        return left_and_right(image_nHWC)

    images = [jpeg(i) for i in (0, 1, 0, 2, 1, 0)]
    out = embed_jpegs(count, images, flip=False, batch=2)
    assert sum(seen) == 3
    assert max(seen) == 2
    assert np.array_equal(out[[0, 2, 5]], out[[0, 0, 0]])
    assert np.array_equal(out, embed_jpegs(left_and_right, images, flip=False))


def test_decoded_colours_are_red_green_blue() -> None:
    red = np.zeros((112, 112, 3), np.uint8)
    red[:, :, 0] = 200
    data = simplejpeg.encode_jpeg(red, quality=95, colorspace="RGB")
    assert decode(data, 112, "")[56, 56].tolist() == pytest.approx([200, 0, 0], abs=6)


def test_other_sizes_and_other_formats_are_named(jpeg: Jpeg) -> None:
    images = [jpeg(0), jpeg(1, 96)]
    with pytest.raises(InputError) as caught:
        verify(left_and_right, Pairs(images * 2, np.array([True, False]), name="mine"))
    assert str(caught.value) == (
        "GL0802 bad-pairs: mine: image 1: expected 112x112 pixels, found 96x96"
    )
    with pytest.raises(InputError, match="mine: image 0: expected a JPEG, PNG or WebP, found"):
        verify(left_and_right, Pairs([b"\x89PNG"] * 4, np.array([True, False]), name="mine"))


def test_progress_reaches_the_end(jpeg: Jpeg) -> None:
    steps = []

    def note(done: int, total: int, note: str = "") -> None:
        steps.append((done, total))

    embed_jpegs(left_and_right, [jpeg(i) for i in range(5)], batch=2, progress=note)
    assert steps == [(2, 5), (4, 5), (5, 5)]


def test_verify_pairs_neighbours(jpeg: Jpeg) -> None:
    images = [jpeg(i) for i in (0, 0, 1, 2, 3, 3, 4, 5)]
    same = np.array([True, False, True, False])
    out = embed_jpegs(left_and_right, images)
    assert verify(left_and_right, Pairs(images, same)) == ten_fold(out[0::2], out[1::2], same)


class Faces:
    """A dataset in memory."""

    def __init__(self, jpeg: Jpeg, names: list[str]) -> None:
        self.source = names
        self._jpeg = jpeg

    def read(self, row: int) -> bytes:
        return self._jpeg(row)


TABLE = (
    "fold\ta\tb\tsame\n0\tp/1.jpg\tp/2.jpg\t1\n0\tp/1.jpg\tq/1.jpg\t0\n1\tq/1.jpg\tp/2.jpg\tfalse\n"
)


def test_a_table_names_samples_by_source(jpeg: Jpeg, tmp_path: Path) -> None:
    path = tmp_path / "mine.tsv"
    path.write_text(TABLE)
    faces = Faces(jpeg, ["x", "q/1.jpg", "p/2.jpg", "p/1.jpg"])
    pairs = read_table(path, faces)
    assert (pairs.name, len(pairs), len(pairs.images)) == ("mine", 3, 3)
    assert [pairs.images[int(i)] for i in pairs.first] == [jpeg(3), jpeg(3), jpeg(1)]
    assert [pairs.images[int(i)] for i in pairs.second] == [jpeg(2), jpeg(1), jpeg(2)]
    assert list(pairs.images[1:]) == [jpeg(2), jpeg(1)]
    assert pairs.same.tolist() == [True, False, False]
    assert pairs.folds is not None
    assert pairs.folds.tolist() == [0, 0, 1]
    found = verify(left_and_right, pairs)
    out = embed_jpegs(left_and_right, [jpeg(i) for i in range(4)])
    assert found == ten_fold(out[[3, 3, 1]], out[[2, 1, 2]], pairs.same, pairs.folds)


def test_unknown_sources_are_counted_and_named(jpeg: Jpeg, tmp_path: Path) -> None:
    path = tmp_path / "mine.tsv"
    lines = [f"0\tgone/{i}.jpg\tp/1.jpg\t1\n" for i in range(5)]
    path.write_text("fold\ta\tb\tsame\n" + "".join(lines))
    with pytest.raises(InputError) as caught:
        read_table(path, Faces(jpeg, ["p/1.jpg"]))
    assert caught.value.code == "GL0802"
    assert caught.value.what == (
        "5 of 6 sources are not in the dataset: gone/0.jpg, gone/1.jpg, gone/2.jpg and 2 more"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\tb\n", "line 1: no column fold, same"),
        ("", "line 1: no column fold, a, b, same"),
        ("fold\ta\tb\tsame\n", "no pairs"),
        ("fold\ta\tb\tsame\n0\tx\ty\tmaybe\n", r"line 2: .*found '0\\tx\\ty\\tmaybe'"),
        ("fold\ta\tb\tsame\n0\tx\ty\t1\nten\tx\ty\t1\n", "line 3: expected a whole number"),
        ("fold\ta\tb\tsame\n0\tx\n", "line 2: expected a whole number, two sources"),
        ("fold\ta\tb\tsame\n0\t\ty\t1\n", "line 2: expected"),
    ],
)
def test_bad_tables_say_where(jpeg: Jpeg, tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.tsv"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        read_table(path, Faces(jpeg, ["x", "y"]))


def test_missing_and_binary_tables(jpeg: Jpeg, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="GL0001"):
        read_table(tmp_path / "none.tsv", Faces(jpeg, []))
    (tmp_path / "mine.tsv").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(InputError, match="not a text table"):
        read_table(tmp_path / "mine.tsv", Faces(jpeg, []))


def test_a_bomb_is_told_by_its_header(jpeg: Jpeg) -> None:
    import tracemalloc

    data = jpeg(0)
    at = data.index(b"\xff\xc0")
    bomb = data[: at + 5] + b"\xff\xdc\xff\xdc" + data[at + 9 :]
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"expected 112x112 pixels, found 65500x65500"):
            decode(bomb, 112, "")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
