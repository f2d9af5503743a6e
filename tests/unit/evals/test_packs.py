"""Verification packs: every known form is read, nothing else is, and nothing of one is run."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glint.errors import InputError, UnsafeError, UsageError
from glint.evals.packs import read_bin, write_bin

IMAGES = [bytes([255, 216, 255, i]) + os.urandom(60) for i in range(6)]
SAME = [True, False, True]


def save(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def check(path: Path) -> None:
    pairs = read_bin(path)
    assert list(pairs.images) == IMAGES
    assert pairs.same.tolist() == SAME
    assert pairs.same.dtype == bool
    assert pairs.first.tolist() == [0, 2, 4]
    assert pairs.second.tolist() == [1, 3, 5]


@pytest.mark.parametrize("name", ["toy_py2", "toy_py3"])
def test_packs_of_both_pythons(shared: Path, name: str) -> None:
    pairs = read_bin(shared / "peers" / "mxnet-recordio" / "bin" / f"{name}.bin")
    assert len(pairs) == 4
    assert pairs.same.tolist() == [True, False, True, False]
    assert [image[:2] for image in pairs.images] == [b"\xff\xd8"] * 8


def test_the_two_pythons_wrote_the_same_pack(shared: Path) -> None:
    folder = shared / "peers" / "mxnet-recordio" / "bin"
    assert read_bin(folder / "toy_py2.bin").images == read_bin(folder / "toy_py3.bin").images


def test_a_pack_of_real_faces(shared: Path) -> None:
    pairs = read_bin(shared / "data" / "lfw" / "lfw_fold10_600pairs.bin")
    assert (len(pairs), int(pairs.same.sum())) == (600, 300)
    assert all(
        image.startswith(b"\xff\xd8") and image.endswith(b"\xff\xd9") for image in pairs.images
    )


@pytest.mark.parametrize("protocol", range(6))
def test_bytes_at_every_protocol(tmp_path: Path, protocol: int) -> None:
    check(save(tmp_path / "a.bin", pickle.dumps((IMAGES, SAME), protocol)))


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_arrays_at_every_protocol(tmp_path: Path, protocol: int) -> None:
    arrays = [np.frombuffer(image, np.uint8).copy() for image in IMAGES]
    arrays[1] = arrays[1][:, None]  # older cv2.imencode gives a column
    check(save(tmp_path / "a.bin", pickle.dumps((arrays, SAME), protocol)))
    flags = [np.bool_(value) for value in SAME]
    check(save(tmp_path / "b.bin", pickle.dumps([arrays, flags], protocol)))
    check(save(tmp_path / "c.bin", pickle.dumps((arrays, np.array(SAME)), protocol)))


@pytest.mark.parametrize("protocol", range(6))
def test_flags_and_images_of_other_writers(tmp_path: Path, protocol: int) -> None:
    number = [int(value) for value in SAME]
    kinds = (np.uint8, np.int32, np.int64, np.float32, np.float64, ">i4")
    every: list[Any] = [number, tuple(number)]
    every += [np.array(number, kind) for kind in kinds]
    every += [[np.int64(n) for n in number], [np.uint8(n) for n in number]]
    for flags in every:
        check(save(tmp_path / "a.bin", pickle.dumps((IMAGES, flags), protocol)))
    check(save(tmp_path / "a.bin", pickle.dumps(([bytearray(i) for i in IMAGES], SAME), protocol)))


def test_a_text_list_is_called_one(tmp_path: Path) -> None:
    for text in (
        "10\t300\nAbel_Pacheco\t1\t4\n",
        "a.jpg b.jpg 1\na.jpg c.jpg 0\n",
        "fold\ta\tb\n1\tx",
    ):
        with pytest.raises(UsageError, match="is a text list of pairs, not a pack") as caught:
            read_bin(save(tmp_path / "pairs.txt", text.encode()))
        assert "--dataset" in caught.value.hint
    with pytest.raises(InputError, match="a Git LFS pointer"):
        read_bin(save(tmp_path / "a.bin", b"version https://git-lfs.github.com/spec/v1\noid x\n"))


def test_what_we_write_is_read_by_plain_pickle(tmp_path: Path) -> None:
    write_bin(tmp_path / "a.bin", IMAGES, SAME)
    assert pickle.loads((tmp_path / "a.bin").read_bytes()) == (IMAGES, SAME)
    check(tmp_path / "a.bin")
    first = (tmp_path / "a.bin").read_bytes()
    write_bin(tmp_path / "a.bin", IMAGES, SAME)
    assert (tmp_path / "a.bin").read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
    with pytest.raises(InputError, match="6 images for 2 pairs"):
        write_bin(tmp_path / "b.bin", IMAGES, SAME[:2])
    assert not (tmp_path / "b.bin").exists()


# --- hostile packs -------------------------------------------------------------------------------


class Call:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.made = (function, arguments)

    def __reduce__(self) -> Any:
        return self.made


def hostile(canary: Path) -> dict[str, bytes]:
    command = f"touch {canary}"
    touch = f"open({str(canary)!r}, 'w')"
    found: dict[str, bytes] = {}
    calls = {
        "system": Call(os.system, command),
        "eval": Call(builtins.eval, touch),
        "exec": Call(builtins.exec, touch),
        "open": Call(builtins.open, str(canary), "w"),
        "getattr": Call(builtins.getattr, [], "append"),
        "loads": Call(pickle.loads, pickle.dumps(Call(os.system, command))),
        "mkdir": Call(os.mkdir, str(canary)),
        "range": Call(range, 10),
        "object": object,
        "set": {1, 2},
        "dict": {"a": 1},
        "float": 1.5,
        "complex": 1j,
        "path": canary,
        "complex array": np.zeros(3, np.complex64),
        "object array": np.array([Call(os.system, command)], dtype=object),
        "text array": np.array(["abc"]),
        "structured": np.zeros(2, dtype=[("a", "u1")]),
        "frombuffer": Call(np.frombuffer, b"abc"),
    }
    for name, value in calls.items():
        for protocol in (0, 2, 4, 5):
            found[f"{name} {protocol}"] = pickle.dumps(([value] * 2, [True]), protocol)
    found["raw global"] = f"cos\nsystem\n(S'{command}'\ntR.".encode()
    found["inst"] = f"(S'{command}'\nios\nsystem\n.".encode()
    found["obj"] = f"(cos\nsystem\nS'{command}'\no.".encode()
    found["dotted"] = b"\x80\x04\x8c\x05numpy\x8c\x09os.system\x93."
    found["newobj"] = b"\x80\x02cnumpy\ndtype\n)\x81."
    found["persid"] = b"Pabc\n."
    found["binpersid"] = b"\x80\x02]Q."
    found["ext"] = b"\x80\x02\x82\x01."
    found["encode rot13"] = (
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R."
    )
    found["build on a function"] = b"\x80\x02c_codecs\nencode\n]b."
    found["build slots on a function"] = b"\x80\x02c_codecs\nencode\n]]\x86b."
    found["call of ndarray"] = b"\x80\x02cnumpy\nndarray\nK\x01\x85R."
    found["next buffer"] = b"\x80\x05\x97."
    return found


def test_nothing_hostile_runs(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    corpus = hostile(canary)
    assert len(corpus) > 80
    for name, content in corpus.items():
        with pytest.raises(UnsafeError) as caught:
            read_bin(save(tmp_path / "evil.bin", content))
        assert caught.value.code == "GL0801", name
        assert caught.value.exit_code == 8
        assert str(tmp_path / "evil.bin") in str(caught.value), name
    assert not canary.exists()


def test_the_refusal_names_what_was_asked_for(tmp_path: Path) -> None:
    path = save(tmp_path / "evil.bin", pickle.dumps(Call(os.system, "true"), 2))
    with pytest.raises(
        UnsafeError, match=r"expected plain images and bools, found the name 'posix"
    ):
        read_bin(path)


BOMBS = {
    "memo index": b"\x80\x02Nr" + struct.pack("<I", 1 << 31) + b".",
    "memo index as text": b"Np999999999\n.",
    "bytes length": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"abc.",
    "bytearray length": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"abc.",
    "text length": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"abc.",
    "frame length": b"\x80\x04\x95" + struct.pack("<Q", 1 << 50) + b"N.",
    "long length": b"\x80\x02\x8b" + struct.pack("<i", 1 << 30) + b"abc.",
    "wide number": b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b".",
    "text number": b"L" + b"9" * 1_000_000 + b"L\n.",
    "text integer": b"I" + b"9" * 1_000_000 + b"\n.",
    "lists": b"\x80\x02" + b"]" * 2_000_000 + b".",
    "tuples in tuples": b"\x80\x02)" + b"\x85" * 2_000_000 + b".",
    "marks": b"\x80\x02" + b"(" * 2_000_000 + b".",
    "nones": b"\x80\x02](" + b"N" * 2_000_000 + b"e.",
    "one text encoded over and over": (
        b"\x80\x02c_codecs\nencode\nq\x00X"
        + struct.pack("<I", 1 << 20)
        + b"a" * (1 << 20)
        + b"q\x01]("
        + b"h\x00h\x01\x85R" * 10_000
        + b"e."
    ),
    "one buffer copied over and over": (
        b"\x80\x05cnumpy.core.numeric\n_frombuffer\nq\x00\x96"
        + struct.pack("<Q", 1 << 20)
        + b"a" * (1 << 20)
        + b"q\x01cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85Rq\x02"
        + b"]("
        + b"h\x00(h\x01h\x02J\x00\x00\x10\x00\x85tR" * 10_000
        + b"e."
    ),
    "array of ever more dimensions": pickle.dumps(np.zeros((1,) * 30, np.uint8), 2),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_stay_small(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "bomb.bin", BOMBS[name])
    tracemalloc.start()
    try:
        with pytest.raises((UnsafeError, InputError)) as caught:
            read_bin(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20
    assert ("over and over" in name) == ("over and over" in caught.value.what)


def test_every_prefix_is_refused_as_cut_short(tmp_path: Path) -> None:
    whole = pickle.dumps((IMAGES[:2], SAME[:1]), 4)
    for length in range(len(whole)):
        with pytest.raises(InputError) as caught:
            read_bin(save(tmp_path / "a.bin", whole[:length]))
        assert caught.value.code == "GL0802"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ((IMAGES[:5], SAME), "an odd number of images (5)"),
        ((IMAGES[:4], SAME), "4 images for 3 pairs"),
        ((IMAGES, [1, 0, 2]), "pair 2: expected True or False, found 2"),
        ((IMAGES, [True, None, False]), "pair 1: expected True or False, found NoneType"),
        ((IMAGES, np.array([1, 0, 7], np.uint8)), "pair 2: expected True or False, found 7"),
        (([*IMAGES[:5], "text"], SAME), "image 5: expected encoded bytes, found str"),
        (([*IMAGES[:5], b""], SAME), "image 5: expected encoded bytes, found nothing"),
        (([*IMAGES[:5], []], SAME), "image 5: expected encoded bytes, found list"),
        (([], []), "no pairs"),
        (IMAGES, "expected a pair of lists, found list"),
        ((IMAGES, SAME, 1), "expected a pair of lists, found tuple"),
        ((7, SAME), "expected two lists, found int and list"),
        (b"plain", "expected a pair of lists, found bytes"),
    ],
)
def test_malformed_packs_say_what_is_wrong(tmp_path: Path, content: Any, said: str) -> None:
    path = save(tmp_path / "a.bin", pickle.dumps(content, 4))
    with pytest.raises(InputError) as caught:
        read_bin(path)
    assert caught.value.code == "GL0802"
    assert said in caught.value.what
    assert caught.value.where == str(path)


def test_a_missing_pack_and_one_that_is_no_pickle(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="GL0001"):
        read_bin(tmp_path / "none.bin")
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(4))
    for content in (b"\xff\xd8\xff\xe0 a JPEG", buffer.getvalue()):
        with pytest.raises(InputError, match="not a pickle, or cut short"):
            read_bin(save(tmp_path / "a.bin", content))
