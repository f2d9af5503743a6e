"""Does another tree of glint do what this one does? Facts of both, recorded and compared.

    python same_as_before.py record ROOT OUT.json [--quick] [--parts worlds,shard] [--cold]
    python same_as_before.py compare A.json B.json        exit 1 if a fact differs

Only the command line of ROOT's glint is used, and `glint.errors.CODES`. A process that has loaded
torch forks for each command, or every command would load it; --cold starts each from nothing.
What is run stands in the file of this name that ends in .txt. Facts are digests of all files that
are written, losses of training runs to the bit, keys and values of every --json, exit and GL codes
of mistakes, and the options of every command. Words told to people are kept apart: `compare` shows
where they differ, and does not fail for it.
"""

from __future__ import annotations

import argparse
import atexit
import fcntl
import gc
import hashlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

LIGHT = "numpy pyarrow.parquet pyarrow.dataset pydantic typer simplejpeg xxhash webdataset fsspec"
HEAVY = "safetensors.torch torch torch._dynamo torch.distributed torch.onnx faiss scipy.sparse"
TORCHED = {"train", "eval", "embed", "export", "import", "validate", "dedup-conflicts", "doctor"}
WAIT = 3600.0  # seconds that a command may take
LEFT_OUT = re.compile(r"(^|/)(_glint/lock|tensorboard/.*)$")
TEXTS = {".json", ".jsonl", ".html", ".md", ".toml"}
DATE = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?( ?UTC|Z|[+-]\d\d:\d\d)?")
TIMED = re.compile(r'"(seconds|seconds_total|images_per_s|waited_s|paused_s)": ?-?[\d.e+-]+')
SHARES = re.compile(r'"(time|seconds)": ?\{[^}]*\}')
SAID = re.compile(r"^error (GL\d{4})", re.MULTILINE)


def tables() -> dict[str, list[str]]:
    """Read the file beside this one: the lines of each [part]."""
    found: dict[str, list[str]] = {}
    text = Path(__file__).resolve().with_suffix(".txt").read_text()
    for line in text.replace("\n  ", " ").splitlines():
        if line.startswith("["):
            found[line.strip("[]")] = []
        elif line and not line.startswith("#"):
            found[next(reversed(found))].append(line)
    return found


def commands(part: Sequence[str], quick: bool) -> Iterator[tuple[str, str]]:
    """Yield the command lines of a part, and the place whose files are wanted after each."""
    for line in part:
        if not (quick and line.startswith("~")):
            before, _, after = line.lstrip("~").partition(": ")
            for one in after.split(" | "):
                words, _, place = f"{before} {one} ".partition("-> ")
                yield words.strip(), place.strip()


# ---- running glint -------------------------------------------------------------------------------


class Said(NamedTuple):
    """What a command left with."""

    exit: int
    out: str
    err: str


def serve(cache: str, modules: Sequence[str]) -> int:
    """Fork for each line of stdin and run `python -m glint` there; tell its pid, then its exit."""
    for name in modules:
        try:
            __import__(name)
        except ImportError:
            continue
    gc.collect()
    gc.freeze()  # or the first collection would copy every page
    for line in sys.stdin:
        words, out, err = json.loads(line)
        pid = os.fork()
        if not pid:
            for number, path in enumerate((os.devnull, out, err)):
                how = os.O_RDWR | (os.O_CREAT | os.O_TRUNC if number else 0)
                os.dup2(os.open(path, how, 0o644), number)
            sys.pycache_prefix, sys.dont_write_bytecode = cache, False  # ROOT stays as it is
            sys.argv = ["glint", *words]
            leave(lambda: runpy.run_module("glint", run_name="__main__", alter_sys=True))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    return 0


def leave(work: Callable[[], object]) -> NoReturn:
    """Do `work` and end this process as Python does, but for freeing what it was forked with."""
    code: object = 0
    try:
        work()
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


class Glint:
    """Runs commands of one tree in one folder."""

    def __init__(self, root: Path, work: Path, cold: bool) -> None:
        self.work = work
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.env = {
            **kept, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200",
            "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
            "CI": "1", "GLINT_CACHE": str(work / "cache"),
        }  # fmt: skip
        self.servers: dict[bool, subprocess.Popen[str]] = {}
        for torched in () if cold else (False, True):
            words = ["serve", str(work / "pyc"), *LIGHT.split(), *HEAVY.split() * torched]
            self.servers[torched] = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve()), *words], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, text=True, env=self.env, cwd=work,
            )  # fmt: skip

    def run(self, line: str, *, stop: tuple[str, str, int] | None = None, out: str = "out") -> Said:
        """Run a command; `stop` sends it a signal once a file of it holds a text."""
        one, two = self.work / out, self.work / "err"
        words = shlex.split(line)
        if not self.servers:
            with open(one, "w") as o, open(two, "w") as e:
                process = subprocess.Popen(
                    [sys.executable, "-m", "glint", *words], stdin=subprocess.DEVNULL, stdout=o,
                    stderr=e, cwd=self.work, env=self.env,
                )  # fmt: skip
            timer = self._wait(process.pid, stop)
            code = process.wait()
        else:
            server = self.servers[words[0] in TORCHED and "--help" not in words]
            assert server.stdin and server.stdout
            server.stdin.write(json.dumps([words, str(one), str(two)]) + "\n")
            server.stdin.flush()
            timer = self._wait(int(server.stdout.readline()), stop)
            code = int(server.stdout.readline())
        timer.cancel()
        return Said(code, one.read_text() if one.is_file() else "", two.read_text())

    def _wait(self, pid: int, stop: tuple[str, str, int] | None) -> threading.Timer:
        timer = threading.Timer(WAIT, os.kill, (pid, signal.SIGKILL))
        timer.start()
        if stop is not None:
            path = self.work / stop[0]
            while timer.is_alive() and not (path.is_file() and stop[1] in path.read_text()):
                time.sleep(0.1)
            os.kill(pid, stop[2])
        return timer


# ---- facts ---------------------------------------------------------------------------------------


def leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every number and text of a JSON value with its place."""
    if not isinstance(value, dict | list | tuple) or not value:
        yield at, value
    else:
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(one, f"{at} / {key}" if at else str(key))


def keys(value: Any) -> list[str]:
    """Return every key of a JSON value as path: type."""
    found = ((re.sub(r" / \d+(?= |$)", " []", f" / {at}"), one) for at, one in leaves(value))
    return sorted({f"{at[3:]}: {type(one).__name__}" for at, one in found})


class Facts:
    """What was seen: `facts` must agree, `text` may differ."""

    def __init__(self, glint: Glint, quick: bool, folders: dict[str, Path]) -> None:
        self.glint, self.quick, self.folders, self.tables = glint, quick, folders, tables()
        self.facts: dict[str, Any] = {}
        self.text: dict[str, str] = {}
        self.left_out: Counter[str] = Counter()

    def plain(self, text: str) -> str:
        """Return a text without folders, times and dates."""
        for name, path in self.folders.items():
            text = text.replace(str(path), name)
        return SHARES.sub(r'"\1": {}', TIMED.sub(r'"\1": 0', DATE.sub("DATE", text)))

    def words(self, line: str) -> str:
        """Return a line with the names in it replaced by what they stand for."""
        for one in reversed(self.tables["names"]):
            line = line.replace(*one.split(" ", 1))
        return line.replace("SHARED", str(self.folders.get("SHARED", "SHARED")))

    def note(self, name: str, value: Any) -> None:
        """Record a fact, under another name where it is asked again."""
        while name in self.facts:
            name += " again"
        self.facts[name] = value

    def ask(
        self, line: str, place: str = "", *, name: str = "", said: Said | None = None,
        values: bool = True,
    ) -> Any:  # fmt: skip
        """Run a command and record its exit, its codes, the keys and values of its answer.

        place: a folder whose files are recorded then; said: what it left with, if it ran.
        """
        name = name or line
        said = said or self.glint.run(f"{self.words(line)} --json")
        found: dict[str, Any] = {"exit": said.exit, "codes": SAID.findall(said.err)}
        if "Traceback" in said.err:
            found["traceback"] = True
        if said.exit:
            told = [one for one in said.err.splitlines() if one.startswith(("error", "hint"))]
            self.text[name] = self.plain("\n".join(told or said.err.splitlines()[-3:]))
        try:
            found["keys"] = keys(json.loads(said.out))
            answer = json.loads(self.plain(said.out))
        except ValueError:
            found["keys"], answer = "no JSON", {}
        if "error" in answer:
            found["values"] = {key: answer[key] for key in ("schema", "error", "slug", "exit")}
        elif values:
            found["values"] = answer
        if said.exit and (self.glint.work / "x").exists():  # what a mistake leaves behind
            found["left"] = sorted(path.name for path in (self.glint.work / "x").iterdir())
            shutil.rmtree(self.glint.work / "x")
        self.note(name, found)
        if place:
            self.files(place)
        return answer

    def files(self, place: str) -> None:
        """Record the digest of every file below a folder; of a training run, its log in full."""
        root, found = self.glint.work / place, dict[str, str]()
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            at, data = path.relative_to(root).as_posix(), path.read_bytes()
            if LEFT_OUT.search(at):
                self.left_out[re.sub(r"tensorboard/.*", "tensorboard/*", at)] += 1
                continue
            if path.suffix in TEXTS:
                text = self.plain(data.decode())
                if (path.parent / "log.jsonl").exists() and path.suffix == ".html":
                    heads = re.findall(r"<h\d[^>]*>[^<]*|<title>[^<]*", text)
                    text = "\n".join([*heads, *sorted(set(re.findall(r"<\w+", text)))])
                if path.name == "log.jsonl":
                    self.note(f"log {place} {at}", [json.loads(one) for one in text.splitlines()])
                data = text.encode()
            found[at] = hashlib.sha256(data).hexdigest()
        self.note(f"files {place}", found or "none")


# ---- inputs, made without glint ------------------------------------------------------------------

Image = tuple[str, bytes]  # person, bytes


def records(folder: Path, most: int) -> list[Image]:
    """Read the first images of a record file whose labels are single numbers."""
    data, found = (folder / "train.rec").read_bytes(), list[Image]()
    for line in (folder / "train.idx").read_text().splitlines():
        at = int(line.split()[1])
        _, length, flag, label = struct.unpack_from("<IIIf", data, at)
        if flag == 0 and data[at + 32 : at + 34] == b"\xff\xd8" and len(found) < most:
            found.append((f"p{int(label):03d}", data[at + 32 : at + 8 + length]))
    return found


def odd() -> list[Image]:
    """Return images that options decide about: another size, turned by Exif, PNG, no image."""
    head = bytes.fromhex("ffd8ffc0000b080070007001011100")  # of a grey JPEG
    large = head.replace(b"\0\x70\0\x70", b"\0\x80\0\x60") + b"x\xff\xd9"
    turn = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    exif = b"\xff\xd8\xff\xe1" + struct.pack(">H", len(turn) + 2) + turn + head[2:] + b"x\xff\xd9"
    shape = struct.pack(">IIBBBBB", 112, 112, 8, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + bytes(range(112)) * 3) * 112)
    png = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", shape), (b"IDAT", pixels), (b"IEND", b"")):
        check = struct.pack(">I", zlib.crc32(kind + body))
        png += struct.pack(">I", len(body)) + kind + body + check
    return [("odd", one) for one in (large, exif, png, b"no image", head + b"x\xff\xd9 behind")]


def sources(place: Path, images: Sequence[Image]) -> None:
    """Write images as every kind of source below `place`."""
    ends = {b"\x89PNG": ".png"}
    named = [(f"{who}/{i:04d}{ends.get(d[:4], '.jpg')}", d) for i, (who, d) in enumerate(images)]
    people = sorted({who for who, _ in images})
    label = [people.index(who) for who, _ in images]
    pairs: list[tuple[str, bytes]] = []
    with zipfile.ZipFile(place / "zip.zip", "w") as packed:
        for i, (name, data) in enumerate(named):
            (place / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
            (place / "folder" / name).write_bytes(data)
            how = zipfile.ZIP_STORED if i % 3 else zipfile.ZIP_DEFLATED
            packed.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data, how)
            pairs += [(f"{i:04d}.jpg", data), (f"{i:04d}.cls", b"%d" % label[i])]
    for name, members in (("tar.tar", named), ("webdataset.tar", pairs)):
        with tarfile.open(place / name, "w", format=tarfile.USTAR_FORMAT) as tar:
            for at, data in members:
                info = tarfile.TarInfo(at)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    table = pa.table({"image": [{"bytes": d, "path": None} for _, d in images], "label": label})
    pq.write_table(table, place / "parquet.parquet", 16, compression="none")


def ijb(meta: Path, data: Path) -> None:
    """Write lists as IJB-C's over the images of a dataset: a template of one, one of the rest."""
    meta.mkdir(parents=True)
    table = pq.read_table(data / "samples.parquet", columns=["source", "label"])
    rows = list(zip(table["source"].to_pylist(), table["label"].to_pylist()))
    first = {label: row for row, (_, label) in reversed(list(enumerate(rows)))}
    template = [100 + 2 * label + (row != first[label]) for row, (_, label) in enumerate(rows)]
    people = [label for label in sorted(first) if 101 + 2 * label in template]
    faces = (f"{Path(s).name} {t} {i}\n" for i, ((s, _), t) in enumerate(zip(rows, template)))
    pairs = (f"{100 + 2 * a} {101 + 2 * b} {int(a == b)}\n" for a in people for b in people)
    (meta / "ijbc_face_tid_mid.txt").write_text("".join(faces))
    (meta / "ijbc_template_pair_label.txt").write_text("".join(pairs))
    lists = {"gallery_G1": people[::2], "gallery_G2": people[1::2], "probe_mixed": people}
    for name, who in lists.items():
        side = 101 if name == "probe_mixed" else 100
        text = "".join(f"{side + 2 * one},{one}\n" for one in who)
        (meta / f"ijbc_1N_{name}.csv").write_text("TEMPLATE_ID,SUBJECT_ID\n" + text)


def harm(work: Path) -> int:
    """Write what mistakes are made with below bad/; return a file that holds a run's lock."""
    bad, evil = work / "bad", b"cos\nsystem\n(S'true'\ntR."
    copies = {"src/folder/odd": "one", "world": "cut idx", "emb": "emb", "runs/tiny": "run held",
              "data": "seal deep cutset rot table marks labels"}  # fmt: skip
    for source, names in copies.items():
        for name in names.split():
            shutil.copytree(work / source, bad / name)
    (bad / "empty").mkdir()
    tar, weights = "data/train-000001.tar", "run/checkpoints/step-000000{}/backbone.safetensors"
    spoilt: dict[str, Callable[[bytes], bytes]] = {
        "file": bytes, "mine/mine": lambda _: b"x", "junk.onnx": lambda _: b"junk",
        "junk.parquet": lambda _: b"junk", "evil.bin": lambda _: evil, "evil.pt": lambda _: evil,
        "bad.toml": lambda _: b"a = = 1\n", "decisions.jsonl": lambda _: b'{"a": 1}\n',
        "keys.toml": lambda _: b"[optim]\nlr = 'fast'\nlrr = 1\n[heads]\nm = 1\n",
        "pairs.tsv": lambda _: b"fold\ta\tb\tsame\n0\ta\tb\t1\n",
        "cut/train.rec": lambda old: old[:40_000] + bytes(9_000) + old[49_000:],
        "idx/train.idx": lambda old: old.replace(b"\t", b"\t1"),
        "seal/manifest.json": lambda old: old.replace(b'"written": 2', b'"written": 3', 1),
        "deep/manifest.json": lambda _: b"[" * 100_000,
        "table/samples.parquet": lambda _: b"PAR1junkPAR1",
        "marks/README.md": lambda _: b"<!-- glint:keep text -->\n",
        "labels/labels/current.json": lambda _: b'{"version": 1, "file": "../../x"}',
        f"cutset/{tar}": lambda old: old[:-2048],
        f"rot/{tar}": lambda old: old[:5_000] + bytes([old[5_000] ^ 1]) + old[5_001:],
        "emb/samples.npy": lambda old: old[:-64],
        weights.format("06"): lambda old: old[:-7], weights.format("12"): lambda old: old[:-7],
        **{f"all/{'ab'[i % 2]}/{i}.jpg": lambda _: b"no image" for i in range(40)},
    }  # fmt: skip
    for name, change in spoilt.items():
        (bad / name).parent.mkdir(parents=True, exist_ok=True)
        old = (bad / name).read_bytes() if (bad / name).exists() else b""
        (bad / name).write_bytes(change(old))
    for name in ("tar.tar", "zip.zip"):
        whole = (work / "src" / name).read_bytes()
        (bad / f"cut.{name[:3]}").write_bytes(whole[: len(whole) // 2])
    pq.write_table(pa.table({"number": [1, 2]}), bad / "none.parquet")
    held = os.open(bad / "held/_glint/lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    return held


# ---- the parts of a record -----------------------------------------------------------------------


def helps(f: Facts, part: str) -> None:
    """Record options, defaults and subcommands of every command."""
    waiting = [""]
    while waiting:
        command = waiting.pop()
        said = f.glint.run(f"{command} --help")
        f.text[f"help {command}"] = said.out
        options: dict[str, list[str]] = {}
        for part in re.split(r"\n(?=  -)", said.out.partition("Options:")[2].split("\n\n")[0]):
            told = " ".join(part.split())
            names = re.match(r"-[\w-]+((, |/)-[\w-]+)*", told)
            if names:
                options[names[0]] = re.findall(r"<[\w .|]+>|\[[^\]]*\]", told)
        below = re.findall(r"^  ([a-z][\w-]*)", said.out.partition("Commands:")[2], re.MULTILINE)
        usage = re.findall(r"Usage: (.*)", said.out)
        f.note(f"help {command}", [said.exit, *usage, options, below])
        waiting += [f"{command} {one}".strip() for one in below]


def ask(f: Facts, part: str) -> None:
    """Run the command lines of a part."""
    for line, place in commands(f.tables[part], f.quick):
        f.ask(line, place)


def worlds(f: Facts, part: str) -> None:
    """Make two synthetic worlds, shard them, and write every kind of source."""
    ask(f, part)
    (f.glint.work / "src").mkdir()
    sources(f.glint.work / "src", records(f.glint.work / "world", 90) + odd())
    ijb(f.glint.work / "ijb/meta", f.glint.work / "data")
    shutil.copytree(f.glint.work / "data", f.glint.work / "data3")


def train(f: Facts, part: str) -> None:
    """Train the runs of a part for twelve steps, `+` also in two times six."""
    for line, _ in commands(f.tables[part], f.quick):
        mark, recipe, *changes = f.words(line).split()
        sets = " ".join(f"--set {shlex.quote(one)}" for one in changes)
        run = f"runs/{mark.rstrip('+')}"
        for out, stops in ((run, (12,)), *([(f"{run}-parts", (6, 12))] * mark.count("+"))):
            for stop in stops:
                steps = f"--set schedule.max_steps={stop} --out {out}"
                f.ask(f"train {recipe} $TINY {sets} {steps}", name=f"train {out} {stop}")
            f.files(out)


def answers(f: Facts, part: str) -> None:
    """Ask every command that has --json, on the world and a small trained net."""
    ask(f, part)
    for row in f.ask("ls").get("recipes", []):
        name = f"{row['shelf']}/{row['name']}"
        if not f.quick or "tiny" in name or row["shelf"] == "pipelines":
            f.ask(f"validate {name}")
        if row["shelf"] == "train" and (not f.quick or "onegpu" in name):
            f.ask(f"train {row['name']} --dry-run --classes 10000")
    f.ask("doctor", values=False)
    stop = ("err", "Ctrl-C", signal.SIGINT)
    f.ask("review", said=f.glint.run("dedup-conflicts review conflicts --json", stop=stop))


def mistakes(f: Facts, part: str) -> None:
    """Make every mistake of the list; each must end in its code."""
    held = harm(f.glint.work)
    ask(f, part)
    f.ask("ls > /dev/full", said=f.glint.run("ls", out="/dev/full"))
    words = "$TRAIN schedule.epochs=999 --set run.save_every=999 --json"
    stop = ("runs/new/log.jsonl", "step", signal.SIGTERM)
    f.ask("train, SIGTERM", said=f.glint.run(f.words(words), stop=stop))
    os.close(held)
    facts = [fact for fact in f.facts.values() if isinstance(fact, dict)]
    met = {code for fact in facts for code in fact.get("codes", ())}
    f.note("codes met", sorted(met))


PARTS: dict[str, Callable[[Facts, str], None]] = {
    "help": helps, "worlds": worlds, "shard": ask, "rewrites": ask, "first": train,
    "answers": answers, "trainings": train, "mistakes": mistakes, "long": ask,
}  # fmt: skip


def record(root: Path, out: Path, parts: str, quick: bool, cold: bool) -> int:
    """Run everything with the glint of `root`; write what was seen."""
    (out.parent / "facts").mkdir(exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="same-", dir=out.parent / "facts"))
    (work / "pages").mkdir()
    above = [Path(os.environ.get("GLINT_SHARED", "/")), *(one / "shared" for one in root.parents)]
    shared = next((one for one in above if (one / "peers").is_dir()), None)
    glint = Glint(root, work, cold)
    folders = {"WORK": work, "ROOT": root, **({"SHARED": shared} if shared else {})}
    f = Facts(glint, quick, folders)
    ask = "import glint.errors as e, json; print(json.dumps([e.__file__, e.CODES]))"
    told = subprocess.check_output([sys.executable, "-c", ask], env=glint.env, cwd=work, text=True)
    place, codes = json.loads(told)
    if not Path(place).is_relative_to(root):
        raise SystemExit(f"glint is {place}, expected one below {root}")
    f.note("codes", {code: slug for code, (slug, _) in codes.items()})
    f.note("version", glint.run("--version").out)
    f.note("real data", shared is not None)
    seconds: dict[str, float] = {}
    wanted = [name for name in PARTS if not parts or name in parts.split(",")]
    how = {"format": "same-as-before@1", "quick": quick, "parts": wanted}
    for name in wanted:
        start = time.monotonic()
        PARTS[name](f, name)
        f.facts["left out"] = dict(sorted(f.left_out.items()))
        seconds[name] = round(time.monotonic() - start, 1)
        print(f"{name}: {seconds[name]} s", file=sys.stderr, flush=True)
        told = {"how": how, "root": str(root), "seconds": seconds, "facts": f.facts, "text": f.text}
        out.write_text(json.dumps(told, indent=1) + "\n")
    for server in glint.servers.values():
        server.communicate()
    shutil.rmtree(work)
    print(f"{len(list(leaves(f.facts)))} facts in {sum(seconds.values()):.0f} s: {out}")
    return 0


def compare(one: Path, two: Path) -> int:
    """Print every fact and every text that differs; return 1 where a fact does."""
    a, b = (json.loads(path.read_text()) for path in (one, two))
    if a["how"] != b["how"]:
        raise SystemExit(f"recorded in other ways: {a['how']} and {b['how']}")
    count: dict[str, str] = {}
    for kind in ("text", "facts"):
        old, new = dict(leaves(a[kind])), dict(leaves(b[kind]))
        both = {**old, **new}
        differ = [one for one in both if repr(old.get(one, old)) != repr(new.get(one, new))]
        for name in differ:
            print(f"{kind}: {name}")
            print(f"  - {old.get(name, 'absent')!r}\n  + {new.get(name, 'absent')!r}")
        count[kind] = f"{len(both)} {kind}, {len(differ)} differ"
    met, known = (a["facts"].get(name, ()) for name in ("codes met", "codes"))
    print("NOTE, left out or changed before comparing:", *tables()["notes"], sep="\n  ")
    print(f"files left out: {a['facts'].get('left out')}; codes met: {len(met)} of {len(known)}")
    print("; ".join(count.values()))
    return int(not count["facts"].endswith(" 0 differ"))


def main() -> int:
    """Run the command line."""
    if sys.argv[1:2] == ["serve"]:
        return serve(sys.argv[2], sys.argv[3:])
    how = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=how)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one, two = verbs.add_parser("record"), verbs.add_parser("compare")
    one.add_argument("root", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("--quick", action="store_true", help="about four minutes")
    one.add_argument("--parts", default="", help=f"some of: {', '.join(PARTS)}")
    one.add_argument("--cold", action="store_true", help="a process from nothing for each command")
    two.add_argument("a", type=Path)
    two.add_argument("b", type=Path)
    given = parser.parse_args()
    if given.verb == "compare":
        return compare(given.a, given.b)
    return record(given.root.resolve(), given.out.resolve(), given.parts, given.quick, given.cold)


if __name__ == "__main__":
    sys.exit(main())
