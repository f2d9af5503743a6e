"""Small files that claim huge pictures: refused by their headers, in little memory."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

GROWTH = 8 << 20  # bytes of memory

LOOK = """
import json, resource, sys
from pathlib import Path
from glint.shards.image import Rejected, look

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))
images = [path.read_bytes() for path in Path(sys.argv[1]).glob("bad/one/*")]
before, told = peak(), {}
for image in images:
    try:
        reason = look(image, ("jpg", "png", "webp"))[0]
    except Rejected as why:
        reason = why.reason
    told[reason] = told.get(reason, 0) + 1
print(json.dumps([told.pop("jpg"), told, peak() - before]))
"""

# The libraries' own address space is taken before the limit: 256 MiB more, for any decoder.
SHARD = """
import json, resource, sys
from pathlib import Path
from glint.pipelines.dataset import plan, shard

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

root = Path(sys.argv[1])
options = plan.Options(formats=("jpg", "png", "webp"))
shard.shard(root / "good", root / "warm", options)
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (256 << 20),) * 2)
before = peak()
result = shard.shard(root / "bad", root / "out", options, max_bad=0.999)
print(json.dumps([result.written, result.quarantine_reasons, peak() - before]))
"""


def chunk(kind: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(width: int, height: int, body: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", body), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def webp(kind: bytes, body: bytes) -> bytes:
    data = b"WEBP" + kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(data)) + data


def claiming(jpeg: bytes, width: int, height: int) -> bytes:
    at = jpeg.index(b"\xff\xc0")
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


def bombs(jpeg: bytes) -> dict[str, bytes]:
    small = png(20_000, 20_000, zlib.compress(b"\0" * 9)[:9] + b"\0" * 8)
    assert len(small) == 74
    return {
        "png": small,
        "png, the largest": png(2**31 - 1, 2**31 - 1, b""),
        "png, packed": png(30_000, 30_000, zlib.compress(b"\0" * (8 << 20))),
        "jpeg": claiming(jpeg, 65535, 65535),
        "webp, lossy": webp(b"VP8 ", b"\x10\0\0\x9d\x01\x2a" + b"\xff\x3f\xff\x3f" + b"\0" * 20),
        "webp, lossless": webp(b"VP8L", b"\x2f" + struct.pack("<I", 2**28 - 1) + b"\0" * 20),
        "webp, extended": webp(b"VP8X", b"\0" * 4 + b"\xff" * 6 + b"\0" * 20),
    }


@pytest.fixture
def folders(tmp_path: Path, jpeg: Callable[[int], bytes]) -> Path:
    for name, image in bombs(jpeg(0)).items():
        path = tmp_path / "bad" / "one" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    (tmp_path / "bad" / "one" / "a face").write_bytes(jpeg(1))
    (tmp_path / "good" / "one").mkdir(parents=True)
    (tmp_path / "good" / "one" / "a face").write_bytes(jpeg(1))
    return tmp_path


@pytest.mark.parametrize("program", [LOOK, SHARD], ids=["look", "shard"])
def test_bombs_cost_no_memory(folders: Path, program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program, folders],
        env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    written, reasons, grown = json.loads(done.stdout)
    assert (written, reasons) == (1, {"too-many-pixels": 7})
    assert grown < GROWTH


@pytest.mark.parametrize(
    "image",
    [
        png(2**32 - 1, 0, b""),
        png(0, 2**32 - 1, b""),
        webp(b"VP8 ", b"\x10\0\0\x9d\x01\x2a" + b"\0\0\xff\x3f" + b"\0" * 20),
    ],
)
def test_a_picture_without_area_is_damaged(image: bytes) -> None:
    from glint.shards.image import Rejected, look

    with pytest.raises(Rejected) as caught:
        look(image, ("jpg", "png", "webp"))
    assert caught.value.reason == "image-damaged"
