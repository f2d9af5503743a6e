"""The local cache of datasets that lie in an object store: what is used is fetched, checked, kept.

GLINT_CACHE names its folder (default: glint/ in the user's cache folder), GLINT_CACHE_SIZE bounds
the shards in it (default 50GB): those least recently used go first. Several processes may use one
cache at once. Removing the folder is always safe.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from glint.errors import BusyError, GlintError, InputError, UsageError
from glint.files import atomic
from glint.files.store import Store
from glint.log import logger

SIZE = "50GB"
SIZES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
PATIENCE = 900.0  # seconds to wait for another process that fetches the same file
# What may stand beside a manifest without being listed in it.
LOOSE = (
    "labels/current.json", "sampling.parquet", "_glint/tombstones.jsonl", "_glint/labels.json",
    "README.md",
)  # fmt: skip
HISTORY = "labels/history.jsonl"
_TODO = "glint verify --deep names all that is damaged"


def folder() -> Path:
    """Return the folder of the cache."""
    if given := os.environ.get("GLINT_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glint"


def limit() -> int:
    """Return the bytes that shards may take. Raises UsageError GL0002."""
    return parse(os.environ.get("GLINT_CACHE_SIZE") or SIZE)


def parse(text: str) -> int:
    """Return the bytes that "50GB", "2TB" or "100MiB" name. Raises UsageError GL0002."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(I?)B?", text.strip().upper())
    if found is None:
        what = f"expected a size such as 50GB, found {text!r}"
        raise UsageError("GL0002", what, where="GLINT_CACHE_SIZE")
    unit = SIZES[found[2]] if not found[3] else 1 << 10 * list(SIZES).index(found[2])
    return int(float(found[1]) * unit)


class _Taken(Exception):
    """Another process, or thread, is fetching it."""


class Remote:
    """A dataset of a store, seen through the cache: `root` is a folder like a local dataset's.

    There: manifest, tables (checked by the manifest's SHA-256), and the shards fetched so far. The
    folder is named by URL and manifest, so a dataset written anew never meets old shards.
    Can be pickled; safe across threads, forks and processes. Raises InputError GL0301 where the URL
    holds no dataset, GL0302 for lost or damaged objects, GL0903 where the store gives no answer.
    """

    def __init__(self, url: str) -> None:
        self.store = Store(url)
        data = self.store.get("manifest.json")
        if data is None:
            what = "expected a dataset, found no manifest.json"
            hint = "make one with: glint shard SRC URL"
            if self.store.stat("_glint/plan.json") is not None:
                what = "unfinished: the manifest, which is written last, is not there"
                hint = "run the same glint shard command to continue"
            raise InputError("GL0301", what, where=self.store.shown, hint=hint)
        version = hashlib.sha256(data).hexdigest()[:16]
        top = folder()
        if not top.exists():  # faces are their reader's, like any cache
            atomic.make_dir(top.parent)
            top.mkdir(mode=0o700, exist_ok=True)
        self.root = top / "datasets" / self.store.folder_name / version
        self._keep("manifest.json", data)
        self._next: threading.Thread | None = None
        try:
            self.manifest = dict(json.loads(data))
        except (ValueError, TypeError):
            self.manifest = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_next": None}

    def tables(self) -> None:
        """Fetch the tables, and the labels in force. Raises InputError."""
        for entry in self.manifest.get("files") or ():
            self.table(entry)
        self.loose()

    def table(self, entry: Any) -> None:
        """Fetch one table that the manifest lists. Raises InputError."""
        name = str(entry.get("name")) if isinstance(entry, dict) else ""
        if name in ("", ".", "..") or "/" in name:
            what = f"expected a table's name, found {name!r}"
            raise InputError("GL0301", what, where=self.store.shown)
        self._fetch(name, entry, "GL0301")

    def loose(self) -> None:
        """Fetch the small files that no manifest lists, as they are now; forget those now gone."""
        for name in LOOSE:
            self._renew(name)
        data = self._renew(HISTORY)  # last: it may be ahead of current.json, never behind
        for line in (data or b"").splitlines():
            try:
                made = [(str(e["name"]), e) for e in json.loads(line).get("files", ())]
            except (ValueError, AttributeError, KeyError, TypeError):
                return  # who reads the history says that it is damaged
            for name, entry in made:
                if re.fullmatch(r"v\d+(\.masks|\.images)?\.parquet", name):
                    self._forget(f"labels/{name}", entry)
                    self._fetch(f"labels/{name}", entry, "GL0304")

    def shard(self, number: int) -> Path:
        """Return the path of a shard, fetched first where it is not there. Raises InputError."""
        return self._fetch(*self._entry(number), "GL0302")

    def open(self, number: int) -> IO[bytes]:
        """Open a shard; it stays readable when it leaves the cache. Raises InputError."""
        for _ in range(10):
            path = self.shard(number)
            try:
                return open(path, "rb", buffering=0)
            except FileNotFoundError:  # put out by another process since
                continue
        what = "put out of the cache again and again before it could be opened"
        raise InputError("GL0302", what, where=str(path), hint="a larger --cache-size")

    @contextmanager
    def fresh(self, number: int) -> Iterator[Path]:
        """Give a folder whose data/ has what the store holds of a shard now, of any content."""
        name, _ = self._entry(number)
        there = self.store.stat(name)
        if there is None:
            raise self.store.lost(name)
        with (
            atomic.writing(self.root),
            tempfile.TemporaryDirectory(prefix="fresh.", dir=self.root) as top,
        ):
            path = Path(top) / name
            path.parent.mkdir()
            with path.open("wb") as file:
                for piece in self.store.pieces(name, there.size):
                    file.write(piece)
            yield Path(top)

    @property
    def fits(self) -> bool:
        """Say whether all shards may be in the cache at once."""
        return sum(int(entry.get("bytes", 0)) for entry in self.manifest["shards"]) <= limit()

    def prefetch(self, number: int) -> None:
        """Fetch one shard in the background, unless another is on its way so already."""
        if self._next is not None and self._next.is_alive():
            return
        if 4 * int(self._entry(number)[1].get("bytes", 0)) <= limit():
            self._next = threading.Thread(target=self.try_fetch, args=(number,), daemon=True)
            self._next.start()

    def try_fetch(self, number: int) -> bool:
        """Fetch a shard, unless another is at it; False if that failed: who needs it is told."""
        try:
            self._fetch(*self._entry(number), "GL0302", patience=0)
        except _Taken:
            return True
        except GlintError as error:
            logger.debug("%s", error)
            return False
        return True

    def put(self, name: str) -> None:
        """Upload a file of `root`, whole or not at all. Raises ResourceError."""
        self.store.put(name, self.root / name)

    def _entry(self, number: int) -> tuple[str, dict[str, Any]]:
        entry = self.manifest["shards"][number]
        return f"data/{entry['name']}", entry

    def _keep(self, name: str, data: bytes) -> None:
        path = self.root / name
        if not path.is_file() or path.read_bytes() != data:
            atomic.make_dir(path.parent)
            atomic.write_bytes(path, data)

    def _renew(self, name: str) -> bytes | None:
        data = self.store.get(name)
        if data is not None:
            self._keep(name, data)
        else:
            (self.root / name).unlink(missing_ok=True)
        return data

    def _forget(self, name: str, entry: dict[str, Any]) -> None:
        """Remove a file that is not the one meant: a version of labels may be made again."""
        with suppress(FileNotFoundError):
            if atomic.sha256_of(self.root / name) != entry.get("sha256"):
                (self.root / name).unlink()

    def _fetch(
        self, name: str, entry: dict[str, Any], code: str, patience: float = PATIENCE
    ) -> Path:
        path = self.root / name
        try:
            size, sha256 = int(entry["bytes"]), str(entry["sha256"])
        except (KeyError, TypeError, ValueError):
            what = f"the size or SHA-256 of {name} is not recorded"
            raise InputError("GL0301", what, where=self.store.shown) from None
        if _whole(path, size):
            return path
        atomic.make_dir(path.parent)
        atomic.make_dir(self.root / "locks")
        with _held(self.root / "locks" / name.replace("/", "-"), patience):
            if not _whole(path, size):
                self._download(name, path, size, sha256, code)
        return path

    def _download(self, name: str, path: Path, size: int, sha256: str, code: str) -> None:
        part, where = path.with_name(path.name + ".part"), self.store.where(name)
        for last in (False, True):  # a second time, should a bit have turned on the way
            there = self.store.stat(name)
            if there is None:
                raise InputError(code, "there is no such object", where=where, hint=_TODO)
            found = f"{there.size} bytes"
            if there.size == size:
                hasher = hashlib.sha256()
                with (
                    atomic.writing(part),
                    _room(part, size, evict=name.startswith("data/")) as file,
                ):
                    for piece in self.store.pieces(name, size):
                        file.write(piece)
                        hasher.update(piece)
                if hasher.hexdigest() == sha256:
                    part.replace(path)
                    return
                part.unlink(missing_ok=True)
                found = f"sha256 {hasher.hexdigest()}"
            if last:
                expected = f"{size} bytes" if "bytes" in found else f"sha256 {sha256}"
                what = f"its bytes have changed: expected {expected}, found {found}"
                raise InputError(code, what, where=where, hint=_TODO)
            logger.warning("%s: other bytes than expected; again", where)


def _whole(path: Path, size: int) -> bool:
    """Say whether a file is there with its size, and note that it was used."""
    with suppress(OSError):
        if path.stat().st_size == size:
            os.utime(path)
            return True
    return False


@contextmanager
def _held(path: Path, patience: float) -> Iterator[None]:
    """Hold a lock; a holder that dies lets go.

    Raises InputError GL0903 after `patience` seconds; without any, _Taken at once.
    """
    held = atomic.Held(path, shared=False)
    try:
        try:
            held.take(patience)
        except BusyError:
            if not patience:
                raise _Taken from None
            what = f"another process has been fetching it for {patience:.0f} s"
            raise InputError("GL0903", what, where=str(path)) from None
        yield
    finally:
        held.release()


@contextmanager
def _room(part: Path, size: int, evict: bool) -> Iterator[IO[bytes]]:
    """Open a file of `size` bytes to come; for a shard, older ones leave until it fits."""
    if not evict:
        with open(part, "wb") as file:
            yield file
        return
    most, top = limit(), folder()
    if size > most:
        what = f"one shard takes {size} bytes, the cache may take {most}"
        raise UsageError("GL0002", what, where=str(part), hint="a larger --cache-size")
    with _held(top / "lock", PATIENCE):
        _evict(top, most - size, part)
        file = open(part, "wb")  # noqa: SIM115
        os.truncate(file.fileno(), size)  # counted in full from now on
    with file:
        yield file


def _evict(top: Path, most: int, but: Path) -> None:
    """Remove the shards least recently used until the rest takes at most `most` bytes."""
    found = []
    for path in top.glob("datasets/*/*/data/*"):
        with suppress(FileNotFoundError):
            stat = path.stat()
            if path.suffix == ".part" and path != but and _dead(path):
                path.unlink(missing_ok=True)
            elif path != but:
                found.append((stat.st_mtime_ns, stat.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most:
            break
        if path.suffix != ".part":
            path.unlink(missing_ok=True)
            total -= size


def _dead(part: Path) -> bool:
    """Say whether whoever wrote a half-fetched file is gone."""
    name = f"data-{part.name.removesuffix('.part')}"
    with suppress(OSError, GlintError, _Taken), _held(part.parents[1] / "locks" / name, 0):
        return True
    return False
