"""Images, and every kind of source that holds them, made without glint."""

from __future__ import annotations

import hashlib
import io
import re
import struct
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

HEAD = bytes.fromhex("ffd8 ffc0 000b 08 0070 0070 01 011100")  # a grey JPEG of 112 x 112 begins
SMALLEST = len(HEAD) + 2
MAGIC = struct.pack("<I", 0xCED7230A)  # of a RecordIO record
STRADDLING = [(1 << k) + d for k in range(9, 24) for d in (-1, 0, 1)]  # 512 B to 8 MiB, and beside
Image = tuple[int, bytes]  # label, bytes
Sample = tuple[str, str]  # SHA-256 of the image, label in the source


def photo(size: int, chance: np.random.Generator) -> bytes:
    """Return a JPEG of this size: some hold a RecordIO magic, some have bytes behind their end."""
    data = bytearray(HEAD + chance.bytes(size - SMALLEST) + b"\xff\xd9")
    if size > 64 and chance.random() < 0.2:
        data[40:44] = MAGIC
    if size > 64 and chance.random() < 0.2:
        data[-20:-18] = b"\xff\xd9"
        data[-1] = 0
    return bytes(data)


def images(sizes: Iterable[int], labels: Iterable[int], seed: int) -> list[Image]:
    """Return images of these sizes; what is too small to be one is unusable."""
    chance = np.random.default_rng(seed)
    return [
        (label, photo(size, chance) if size >= SMALLEST else b"\xfe" * size)
        for size, label in zip(sizes, labels)
    ]


def mixed(total: int, seed: int, small: int = 300) -> list[Image]:
    """Return images of about `total` bytes: beside powers of two, small ones, 1 B to 9 MB."""
    chance = np.random.default_rng(seed)
    sizes = [1, 1, SMALLEST, SMALLEST + 1, 900, 5 << 20, 9_000_000]
    sizes += chance.integers(64, 20_000, small).tolist()
    while sum(sizes) < total:
        left = total - sum(sizes)
        sizes += [s for s in STRADDLING if s <= left // 4] or [left]
    chance.shuffle(sizes)
    return images(sizes, sorted(chance.integers(0, 40, len(sizes)).tolist()), seed)


def sha(data: bytes) -> str:
    """Return SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def usable(images: Sequence[Image]) -> Counter[Sample]:
    """Return what a dataset of these images must hold."""
    return Counter((sha(data), str(label)) for label, data in images if len(data) >= SMALLEST)


def unusable(images: Sequence[Image]) -> Counter[str]:
    """Return the SHA-256 of those that must be quarantined."""
    return Counter(sha(data) for _, data in images if len(data) < SMALLEST)


def _named(images: Sequence[Image]) -> Iterable[tuple[str, bytes]]:
    return ((f"{label}/{i:06d}.jpg", data) for i, (label, data) in enumerate(images))


def _tar(path: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def folder(place: Path, images: Sequence[Image]) -> Path:
    """Write LABEL/NUMBER.jpg."""
    for name, data in _named(images):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return place


def archive(place: Path, images: Sequence[Image]) -> Path:
    """Write a tar of such folders."""
    return _tar(place.with_suffix(".tar"), _named(images))


def webdataset(place: Path, images: Sequence[Image]) -> Path:
    """Write a tar of NUMBER.jpg and NUMBER.cls."""
    pairs = ((i, (("jpg", data), ("cls", b"%d" % label))) for i, (label, data) in enumerate(images))
    return _tar(
        place.with_suffix(".tar"),
        ((f"{i:06d}.{end}", data) for i, two in pairs for end, data in two),
    )


def stored(place: Path, images: Sequence[Image], packed: int = 0) -> Path:
    """Write a zip of such folders; with `packed`, one member in so many is deflated."""
    with zipfile.ZipFile(place.with_suffix(".zip"), "w", compresslevel=1) as file:
        for i, (name, data) in enumerate(_named(images)):
            method = zipfile.ZIP_DEFLATED if packed and i % packed == 0 else zipfile.ZIP_STORED
            file.writestr(name, data, method)
    return place.with_suffix(".zip")


def deflated(place: Path, images: Sequence[Image]) -> Path:
    """Write a zip of such folders, every third member packed."""
    return stored(place, images, 3)


def parquet(place: Path, images: Sequence[Image]) -> Path:
    """Write columns `image` (bytes, path) and `label`."""
    image = [{"bytes": data, "path": None} for _, data in images]
    table = pa.table({"image": image, "label": [label for label, _ in images]})
    pq.write_table(table, place.with_suffix(".parquet"), 16, compression="none")
    return place.with_suffix(".parquet")


def recordio(
    place: Path, images: Iterable[Image], identities: dict[int, list[int]] | None = None
) -> Path:
    """Write train.rec and train.idx, with InsightFace's records of `identities` or without."""
    place.mkdir(parents=True)
    with open(place / "train.rec", "wb") as file, open(place / "train.idx", "w") as idx:

        def put(key: int, data: bytes, *label: float) -> None:
            idx.write(f"{key}\t{file.tell()}\n")
            if len(label) == 1:
                payload = struct.pack("<IfQQ", 0, label[0], key, 0) + data
            else:
                payload = struct.pack(f"<IfQQ{len(label)}f", len(label), 0, key, 0, *label) + data
            cuts = [m.start() for m in re.finditer(re.escape(MAGIC), payload) if m.start() % 4 == 0]
            for i, (begin, end) in enumerate(
                zip([0, *(c + 4 for c in cuts)], [*cuts, len(payload)])
            ):
                part = (0 if not cuts else 1 if i == 0 else 3 if i == len(cuts) else 2) << 29
                file.write(MAGIC + struct.pack("<I", part | (end - begin)) + payload[begin:end])
                file.write(bytes(-(end - begin) % 4))

        ranges = identities or {}
        last = sum(map(len, ranges.values())) + 1  # behind the images
        if ranges:
            put(0, b"", last, last + len(ranges))
        for key, (label, data) in enumerate(images, 1):
            put(key, data, label)
        for key, mine in enumerate(ranges.values(), last):
            put(key, b"", mine[0], mine[-1] + 1)
    return place


def insightface(place: Path, images: Sequence[Image]) -> Path:
    """Write a record file with identity records."""
    keys: dict[int, list[int]] = {}
    for key, (label, _) in enumerate(images, 1):
        keys.setdefault(label, []).append(key)
    return recordio(place, images, keys)


MAKERS: dict[str, Callable[[Path, Sequence[Image]], Path]] = {
    "folder": folder,
    "tar": archive,
    "webdataset": webdataset,
    "zip": stored,
    "deflated": deflated,
    "parquet": parquet,
    "recordio": recordio,
    "insightface": insightface,
}
