"""Files made to harm, given to the commands that read such files.

None may run its code (a marker file would appear), each must end in one clear error with an exit
code of glint's own, within a minute and with less than 256 MiB above a bare start of the same
command. A few run by default, all of them with the marker `faults`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

GROWTH = 256 << 10  # KiB above a bare start
CODES = range(2, 11)
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

# glint as it is started, but that it tells its peak memory at the end; children's count as its own
PROGRAM = """
import atexit, resource, sys
def tell(path):
    lines = open("/proc/self/status").read().splitlines()
    own = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    open(path, "w").write(str(max(own, children)))
atexit.register(tell, sys.argv.pop(1))
from glint.cli.app import main
main()
"""


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


# ---- bytes: each maker is given a shell command that must never run ------------------------------

Maker = Callable[[str], bytes]


def pickled(protocol: int, wrap: Callable[[object], object] = lambda x: x) -> Maker:
    return lambda command: pickle.dumps(wrap(Payload(command)), protocol=protocol)


def quoted(command: str) -> bytes:
    return repr(command).encode()


def instance(command: str) -> bytes:
    """The same by the opcode INST: no GLOBAL, no REDUCE."""
    return b"(S" + quoted(command) + b"\nios\nsystem\n."


def obj(command: str) -> bytes:
    """By OBJ, with the callable on the stack."""
    return b"(cos\nsystem\nS" + quoted(command) + b"\no."


def evaluated(command: str) -> bytes:
    code = f"__import__('os').system({command!r})"
    return b"cbuiltins\neval\n(S" + quoted(code) + b"\ntR."


def disguised(command: str) -> bytes:
    """A name on the list of allowed ones first, the real one behind it."""
    return b"ccollections\nOrderedDict\n)R0" + pickle.dumps(Payload(command), protocol=2)


def by_attribute(command: str) -> bytes:
    """Fetch os.system through a dotted name inside an allowed module."""
    return b"\x80\x04\x8c\x0ctorch._utils\x8c\x09os.system\x93\x8c" + bytes(
        [len(command)]
    ) + command.encode() + b"\x85R."  # fmt: skip


def extension(command: str) -> bytes:
    return b"\x80\x02\x82\x01."


def nested(opener: bytes, closer: bytes, times: int) -> Maker:
    return lambda command: opener * times + closer * times


def laughs(command: str) -> bytes:
    """A list that holds itself twice, thirty times over: 2^30 items to whoever walks it."""
    return b"\x80\x02]q\x00" + b"".join(
        b"]q" + bytes([i]) + b"(h" + bytes([i - 1]) + b"h" + bytes([i - 1]) + b"e"
        for i in range(1, 31)
    ) + b"."  # fmt: skip


def zipped(member: Maker, compression: int = zipfile.ZIP_STORED, *more: str) -> Maker:
    """A file of torch.save with that as its data.pkl."""

    def make(command: str) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", compression) as archive:
            archive.writestr("archive/data.pkl", member(command))
            archive.writestr("archive/version", "3\n")
            for name in more:
                archive.writestr(f"archive/{name}", member(command))
        return file.getvalue()

    return make


def huge_tensor(command: str) -> bytes:
    """A state dict whose one tensor claims 2^40 numbers of a storage of none."""
    storage = b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x00tQ"
    shape = b"K\x00(\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"t(K\x01t\x89"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + shape
    data = b"\x80\x02}U\x06weight" + call + b"ccollections\nOrderedDict\n)RtRs."
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", b"")
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def overlapping(command: str) -> bytes:
    """Two members of an archive that are one and the same gigabyte-to-be."""
    data = bytearray(zipped(lambda _: b"\0" * 1000, zipfile.ZIP_STORED, "data/0")(command))
    at = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    data[at + 20 : at + 28] = struct.pack("<II", 1 << 30, 1 << 30)
    return bytes(data)


def safetensors(header: bytes, length: int | None = None, body: bytes = b"") -> Maker:
    size = struct.pack("<Q", len(header) if length is None else length)
    return lambda command: size + header + body


def entry(**fields: Any) -> bytes:
    return json.dumps({"weight": fields}).encode()


def tensors_in_header(command: str) -> bytes:
    """A header of 60 MB that lists a million tensors of no numbers."""
    inner = b",".join(
        b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(1_000_000)
    )
    return safetensors(b"{" + inner + b"}")(command)


def npy(header: bytes, length: int | None = None, body: bytes = b"") -> Maker:
    def make(command: str) -> bytes:
        size = len(header) if length is None else length
        return b"\x93NUMPY\x02\x00" + struct.pack("<I", size) + header + body

    return make


def objects(command: str) -> bytes:
    head = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"
    return npy(head, body=pickle.dumps(Payload(command)))(command)


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, data: bytes, claim: int | None = None) -> bytes:
    return varint(number << 3 | 2) + varint(len(data) if claim is None else claim) + data


def onnx_of(tensor: bytes) -> bytes:
    """An ONNX file that gives a tensor called w."""
    node = field(1, b"w") + field(2, b"out") + field(4, b"Identity")
    kind = field(1, b"\x08\x01")
    graph = field(1, node) + field(2, b"g") + field(5, tensor)
    graph += field(12, field(1, b"out") + field(2, kind))
    return b"\x08\x08" + field(7, graph) + field(8, b"\x10\x11")


def onnx_huge(command: str) -> bytes:
    dims = b"\x08" + varint(1 << 40)
    return onnx_of(dims + b"\x10\x01" + field(8, b"w") + field(9, b"\0" * 4))


def onnx_elsewhere(command: str) -> bytes:
    place = field(1, b"location") + field(2, b"../../../../../../etc/passwd")
    return onnx_of(b"\x08\x04\x10\x01" + field(8, b"w") + field(13, place) + b"\x70\x01")


def tarred(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> Maker:
    def make(command: str) -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            archive.addfile(info)
        data = bytearray(file.getvalue())
        if size:
            data[124:136] = b"%011o\0" % size if size < 1 << 33 else b"\x80" + size.to_bytes(
                11, "big"
            )  # fmt: skip
            data[148:156] = b" " * 8
            data[148:156] = b"%06o\0 " % sum(data[:512])
        return bytes(data)

    return make


def packed_zip(command: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.jpg", b"\0" * (300 << 20))
    return file.getvalue()


def png(command: str) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


def jpeg_claim(command: str) -> bytes:
    """The start of a JPEG of 65,535 x 65,535."""
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, 65535, 65535, 3)
    parts = b"\x01\x22\x00\x02\x11\x01\x03\x11\x01"
    scan = b"\xff\xda\x00\x0c\x03\x01\x00\x02\x11\x03\x11\x00\x3f\x00" + b"\0" * 100
    return b"\xff\xd8" + frame + parts + scan + b"\xff\xd9"


def pack_of(image: Maker) -> Maker:
    return lambda command: pickle.dumps(([image(command)] * 20, [True, False] * 5), protocol=2)


def deep(command: str) -> bytes:
    return b'{"format":' + b"[" * 200_000 + b"]" * 200_000 + b"}"


# ---- the table -----------------------------------------------------------------------------------

WEIGHTS: dict[str, Maker] = {
    "a pickle of protocol 0": pickled(0),
    "a pickle of protocol 2": pickled(2),
    "a pickle of protocol 5": pickled(5),
    "in a state dict": zipped(pickled(2, lambda x: {"weight": x})),
    "in an archive, protocol 4": zipped(pickled(4)),
    "in an archive's second pickle": zipped(pickled(2), zipfile.ZIP_STORED, "constants.pkl"),
    "INST": zipped(instance),
    "OBJ": zipped(obj),
    "eval": zipped(evaluated),
    "an allowed name first": zipped(disguised),
    "a dotted name": zipped(by_attribute),
    "an extension code": zipped(extension),
    "a tensor of 2^40": huge_tensor,
    "a packed pickle": zipped(lambda _: b"\0" * (300 << 20), zipfile.ZIP_DEFLATED),
    "members that overlap": overlapping,
    "LONG_BINPUT of 2^31": lambda _: b"\x80\x02]r\xff\xff\xff\x7f.",
    "BINBYTES8 of 2^62": lambda _: b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.",
    "a deep pickle": nested(b"(", b"t", 500_000),
    "a tar": tarred("pickle", size=1 << 40),
}
SAFETENSORS: dict[str, Maker] = {
    "a pickle by another name": pickled(2),
    "a header of 2^62": safetensors(b"{}", 1 << 62),
    "a header beyond the end": safetensors(b"{}", 90 << 20),
    "a million tensors": tensors_in_header,
    "a deep header": safetensors(b'{"a":' + b"[" * 500_000 + b"]" * 500_000 + b"}"),
    "a tensor of 2^60": safetensors(entry(dtype="F32", shape=[1 << 60], data_offsets=[0, 4]),
                                    body=b"\0" * 4),
    "sizes that overflow": safetensors(
        entry(dtype="F32", shape=[1 << 33, 1 << 33], data_offsets=[0, 0])
    ),
    "offsets beyond the end": safetensors(
        entry(dtype="F32", shape=[1 << 20], data_offsets=[0, 4 << 20]), body=b"\0" * 8
    ),
    "offsets that run back": safetensors(
        entry(dtype="F32", shape=[1], data_offsets=[4, 0]), body=b"\0" * 4
    ),
    "an unknown type": safetensors(entry(dtype="O", shape=[1], data_offsets=[0, 8]),
                                   body=b"\0" * 8),
}  # fmt: skip
PACKS: dict[str, Maker] = {
    "protocol 0": pickled(0),
    "protocol 2 inside": pickled(2, lambda x: ([x, b""], [True])),
    "protocol 5": pickled(5),
    "INST": instance,
    "OBJ": obj,
    "eval": evaluated,
    "an extension code": extension,
    "LONG_BINPUT of 2^31": lambda _: b"\x80\x02]r\xff\xff\xff\x7f.",
    "BINBYTES8 of 2^62": lambda _: b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"x.",
    "BINUNICODE of 2^31": lambda _: b"\x80\x02X\xff\xff\xff\x7fx.",
    "a deep list": nested(b"]", b"a", 500_000),
    "a billion laughs": laughs,
    "JPEGs of 65,535 x 65,535": pack_of(jpeg_claim),
    "PNGs of 60,000 x 60,000": pack_of(png),
}
MODELS: dict[str, Maker] = {
    "a pickle called .onnx": pickled(2),
    "a graph of 2^60 bytes": lambda _: b"\x08\x08" + field(7, b"x", 1 << 60),
    "a tensor of 2^40": onnx_huge,
    "a tensor in another file": onnx_elsewhere,
    "a deep graph": lambda _: b"".join(varint(7 << 3 | 2) + varint(1 << 20) for _ in range(99_999)),
}
STATES: dict[str, tuple[str, Maker]] = {  # of a checkpoint whose manifest is right
    "state.json, deep": ("state.json", deep),
    "state.json, a pickle": ("state.json", pickled(2)),
    "state.json, a list": ("state.json", lambda _: b"[1]"),
    "state.json, empty": ("state.json", lambda _: b"{}"),
    "state.json, numbers without end": (
        "state.json", lambda _: b'{"step":' + b"9" * 100_000 + b"}"
    ),
    "state.json, a net of 10^12": (
        "state.json",
        lambda _: b'{"step": 1, "backbone": {"name": "iresnet50", "embedding": 1000000000000}}',
    ),
    "state.json, a net of 10^9 layers": (
        "state.json",
        lambda _: b'{"step": 1, "backbone": {"name": "iresnet", "embedding": 16, '
        b'"options": {"layers": [1000000000, 1, 1, 1]}}}',
    ),
    **{
        f"backbone.safetensors, {name}": ("backbone.safetensors", maker)
        for name, maker in SAFETENSORS.items()
    },
    "optimizer.safetensors, a pickle": ("optimizer.safetensors", pickled(2)),
    "head-00000.safetensors, a pickle": ("head-00000.safetensors", pickled(2)),
    "head-00000.safetensors, no rows": ("head-00000.safetensors", safetensors(b"{}")),
    "head-00000.safetensors, rows that lie": (
        "head-00000.safetensors",
        safetensors(
            b'{"__metadata__":{"start":"-9","stop":"99999999999"},'
            b'"weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', body=b"\0" * 4
        ),
    ),
}  # fmt: skip
RECIPES: dict[str, Maker] = {
    "deep arrays": lambda _: b"a = " + b"[" * 100_000 + b"]" * 100_000,
    "deep tables": lambda _: b"a = " + b"{b = " * 50_000 + b"1" + b"}" * 50_000,
    "a deep key": lambda _: b"a" + b".a" * 100_000 + b" = 1",
    "a number without end": lambda _: b"a = " + b"9" * 1_000_000,
    "a pickle": pickled(2),
    "YAML that calls": lambda command: b'!!python/object/apply:os.system ["%s"]' % command.encode(),
    "Python": lambda command: f"import os\nos.system({command!r})\n".encode(),
}
NAMED: dict[str, Maker] = {  # valid, until somebody looks for the net and the data
    "a name that is a command": lambda command: (
        b'[backbone]\nname = "iresnet50; %s"\n[data]\npath = "$(%s)"\n'
        b'[head]\nmargin = "cosface"\n[optim]\nlr = 0.1\n[schedule]\nepochs = 1\n'
        % (command.encode(), command.encode())
    ),
}
SOURCES: dict[str, tuple[str, Maker]] = {
    "a member ../": ("a.tar", tarred("../../outside.jpg")),
    "an absolute member": ("a.tar", tarred("/outside.jpg")),
    "a link": ("a.tar", tarred("a/1.jpg", tarfile.SYMTYPE, "/etc/passwd")),
    "a hard link": ("a.tar", tarred("a/1.jpg", tarfile.LNKTYPE, "/etc/passwd")),
    "a device": ("a.tar", tarred("a/1.jpg", tarfile.CHRTYPE)),
    "a long name of 8 GiB": (
        "a.tar", tarred("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=1 << 33)
    ),
    "an extended header of 2^60": ("a.tar", tarred("h", tarfile.XHDTYPE, size=1 << 60)),
    "a member of 2^60": ("a.tar", tarred("a/1.jpg", size=1 << 60)),
    "a packed tar": ("a.tar", lambda _: gzip.compress(b"\0" * (300 << 20), 9)),
    "a packed zip": ("a.zip", packed_zip),
    "a table that is a pickle": ("a.parquet", pickled(2)),
    "a table's foot of 2^31": ("a.parquet", lambda _: b"PAR1" + b"\xff\xff\xff\x7fPAR1"),
    "a picture of 65,535 x 65,535": ("a/1.jpg", jpeg_claim),
    "a picture of 60,000 x 60,000": ("a/1.png", png),
    "a picture that is a pickle": ("a/1.jpg", pickled(2)),
    "a record of 2^29": (
        "train.rec", lambda _: struct.pack("<II", 0xCED7230A, (1 << 29) - 1) + b"\0" * 64
    ),
}  # fmt: skip
DATASETS: dict[str, tuple[str, Maker]] = {
    "manifest.json, deep": ("manifest.json", deep),
    "manifest.json, a pickle": ("manifest.json", pickled(2)),
    "manifest.json, counts without end": (
        "manifest.json", lambda _: b'{"format": "glint/dataset@1", "written": 1e999}'
    ),
    "samples.parquet, a pickle": ("samples.parquet", pickled(2)),
    "samples.parquet, a foot of 2^31": (
        "samples.parquet", lambda _: b"PAR1" + b"\xff\xff\xff\x7fPAR1"
    ),
    "labels/current.json, another file": (
        "labels/current.json", lambda _: b'{"version": 1, "file": "../../../../../etc/passwd"}'
    ),
    "labels/current.json, deep": ("labels/current.json", deep),
    "labels/v0001.parquet, a pickle": ("labels/v0001.parquet", pickled(2)),
}  # fmt: skip
REPORTS: dict[str, tuple[str, Maker]] = {
    "conflicts.json, deep": ("conflicts.json", deep),
    "conflicts.json, a pickle": ("conflicts.json", pickled(2)),
    "pairs.parquet, a pickle": ("pairs.parquet", pickled(2)),
    "groups.parquet, a pickle": ("groups.parquet", pickled(2)),
    "decisions.jsonl, deep": ("decisions.jsonl", lambda command: deep(command) + b"\n"),
    "decisions.jsonl, a pickle": ("decisions.jsonl", pickled(0)),
    "decisions.jsonl, a line without end": (
        "decisions.jsonl", lambda _: b'{"a": "' + b"x" * (32 << 20) + b"\n"
    ),
}  # fmt: skip
ARRAYS: dict[str, Maker] = {
    "objects": objects,
    "a header of 2^31": npy(b"{}", 1 << 31),
    "a deep header": npy(b"(" * 60_000 + b")" * 60_000),
    "a header that calls": npy(b"__import__('os').system('touch x')\n"),
    "a shape of 2^60": npy(
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976, 4), }\n"
    ),
    "a shape below zero": npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4), }\n"),
    "an archive of arrays": zipped(objects),
}


@dataclass(frozen=True)
class Case:
    """A file to make, and the command that reads it: words, or what the files of a test are."""

    name: str
    maker: Maker
    command: str
    file: str = ""
    light: bool = False  # no torch: quick enough for every run


def cases() -> list[Case]:
    """Pair every file with the commands that read its kind."""
    found = [Case(f"import: {n}", m, "import", "net.pt") for n, m in WEIGHTS.items()]
    found += [Case(f"import: {n}", m, "import", "net.safetensors") for n, m in SAFETENSORS.items()]
    found += [Case(f"eval: {n}", m, "eval", "pairs.bin") for n, m in PACKS.items()]
    found += [Case(f"eval: {n}", m, "model", "net.onnx") for n, m in MODELS.items()]
    for name, (file, maker) in STATES.items():
        found.append(Case(f"train: {name}", maker, "resume", file))
        if file in ("state.json", "backbone.safetensors"):
            found.append(Case(f"export: {name}", maker, "export", file))
    quick = ("deep arrays", "a deep key", "a pickle")
    for name, maker in RECIPES.items():
        found.append(Case(f"validate: {name}", maker, "validate", "r.toml", name in quick))
    both = {**RECIPES, **NAMED}.items()
    found += [Case(f"train: recipe, {n}", m, "train", "r.toml") for n, m in both]
    for name, (file, maker) in SOURCES.items():
        found.append(Case(f"shard: {name}", maker, "shard", file))
    for name, (file, maker) in DATASETS.items():
        found.append(Case(f"verify: {name}", maker, "verify", file))
    for name, (file, maker) in REPORTS.items():
        found.append(Case(f"apply: {name}", maker, "apply", file))
    found += [Case(f"dedup: {n}", m, "dedup", "samples.npy") for n, m in ARRAYS.items()]
    assert len({case.name for case in found}) == len(found) >= 40
    return found


# ---- what they are put into ----------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """Good files of every kind, to copy and harm."""

    data: Path
    run: Path
    recipe: Path
    emb: Path
    report: Path
    pairs: Path


TRAIN = """
[data]
path = "{data}"
batch = 8
[backbone]
name = "iresnet"
embedding = 16
options = {{ layers = [1, 1, 1, 1], widths = [4, 4, 8, 8] }}
[head]
margin = "cosface"
[optim]
lr = 0.1
[schedule]
epochs = 9
max_steps = 2
[run]
device = "cpu"
threads = 1
tensorboard = false
"""


def glint(*words: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "glint", *map(str, words)], env=ENV, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("good")
    glint("synth", root / "world", "--identities", 12, "--images", 6, "--unseen", 20,
          "--pairs", 20, "--conflicts", 2, "--lookalikes", 0)  # fmt: skip
    glint("shard", root / "world", root / "data")
    recipe = root / "recipe.toml"
    recipe.write_text(TRAIN.format(data=root / "data"))
    glint("train", recipe, "--out", root / "run")
    glint("embed", root / "data", "--model", root / "run", "--out", root / "emb")
    glint("dedup-conflicts", root / "data", "--embeddings", root / "emb", "--out",
          root / "report", "--no-thumbs")  # fmt: skip
    return World(root / "data", root / "run", recipe, root / "emb", root / "report",
                 root / "world" / "pairs.bin")  # fmt: skip


def reseal(folder: Path) -> None:
    """Write the manifest that a checkpoint's files ask for."""
    files = {
        p.name: {"bytes": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
        for p in sorted(folder.iterdir())
        if p.name != "MANIFEST.json"
    }
    text = json.dumps({"format": "glint/checkpoint@1", "files": files})
    (folder / "MANIFEST.json").write_text(text)


def lay(case: Case, place: Path, data: bytes | None, world: World | None) -> list[object]:
    """Put a file where its command reads it; give the command. data: None = as good as can be."""

    def put(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is not None:
            path.write_bytes(data)
        elif not path.exists():
            path.write_bytes(b"")
        return path

    if case.command == "import":
        return ["import", put(place / case.file), place / "out", "--backbone", "mbf"]
    if case.command == "validate":
        return ["validate", put(place / case.file)]
    if case.command == "train":
        return ["train", put(place / case.file), "--out", place / "out"]
    if case.command == "shard":
        put(place / "source" / case.file)
        return ["shard", place / "source", place / "out"]
    assert world is not None
    if case.command == "eval":
        return ["eval", "--model", world.run, "--pairs", put(place / case.file)]
    if case.command == "model":
        return ["eval", "--model", put(place / case.file), "--pairs", world.pairs]
    if case.command in ("resume", "export"):
        run = place / "run"
        shutil.copytree(world.run, run)
        (folder,) = (run / "checkpoints").iterdir()
        if data is not None:
            put(folder / case.file)
            reseal(folder)
        if case.command == "export":
            return ["export", run, place / "net.onnx", "--crops", "1"]
        return ["train", world.recipe, "--out", run, "--set", "schedule.max_steps=3"]
    if case.command == "verify":
        shutil.copytree(world.data, place / "data")
        if case.file.startswith("labels/v"):
            target = place / "data" / "labels" / "current.json"
            target.parent.mkdir(exist_ok=True)
            target.write_text('{"version": 1, "file": "v0001.parquet"}')
        put(place / "data" / case.file)
        return ["verify", place / "data", "--deep"]
    if case.command == "apply":
        shutil.copytree(world.data, place / "data")
        shutil.copytree(world.report, place / "report")
        put(place / "report" / case.file)
        return ["dedup-conflicts", "apply", place / "report"]
    assert case.command == "dedup"
    shutil.copytree(world.emb, place / "emb")
    put(place / "emb" / case.file)
    return ["dedup-conflicts", world.data, "--embeddings", place / "emb", "--out", place / "out",
            "--no-thumbs"]  # fmt: skip


def run(words: list[object], place: Path) -> tuple[int, str, int]:
    """Run a command; give its exit code, what it said and its peak memory in KiB."""
    peak = place / "peak"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(peak), *map(str, words)], env=ENV, cwd=place,
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    told = int(peak.read_text()) if peak.exists() else sys.maxsize  # ended by a signal
    return done.returncode, done.stdout + done.stderr, told


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case, World | None], int]:
    """Give the peak memory of a command on a harmless file of the same name, once a command."""
    known: dict[str, int] = {}

    def of(case: Case, world: World | None) -> int:
        if case.command not in known:
            place = tmp_path_factory.mktemp("bare")
            known[case.command] = run(lay(case, place, None, world), place)[2]
        return known[case.command]

    return of


@pytest.mark.skipif(sys.platform != "linux", reason="reads peaks from /proc")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=c.name, marks=() if c.light else pytest.mark.faults) for c in cases()],
)
def test_it_is_refused(
    case: Case,
    tmp_path: Path,
    bare: Callable[[Case, World | None], int],
    request: pytest.FixtureRequest,
) -> None:
    alone = case.command in ("import", "validate", "train", "shard")
    world = None if alone else request.getfixturevalue("world")
    marker = tmp_path / "it ran"
    data = case.maker(f"touch '{marker}'")
    place = tmp_path / "place"
    place.mkdir()
    code, said, peak = run(lay(case, place, data, world), place)
    assert not marker.exists() and not (place / "x").exists(), "its code ran"
    assert code in CODES, f"exit {code}\n{said[-2000:]}"
    assert "Traceback" not in said and said.count("error GL") == 1, said[-2000:]
    assert peak - bare(case, world) < GROWTH
    assert not (tmp_path / "outside.jpg").exists()


@pytest.mark.parametrize("maker", [pickled(0), pickled(2), pickled(5), instance, obj, evaluated])
def test_the_pickles_would_run(tmp_path: Path, maker: Maker) -> None:
    marker = tmp_path / "it ran"
    program = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    data = maker(f"touch '{marker}'")
    subprocess.run([sys.executable, "-S", "-c", program], input=data, env=ENV, check=True)
    assert marker.exists()
