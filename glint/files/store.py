"""Object stores (s3://, gs://, any fsspec URL): whole objects, checked, with waits that end.

The only door to fsspec. A listing of a store may be stale, so nothing here lists: every question is
put to the object itself.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from glint.errors import GlintError, InputError, ResourceError, UsageError
from glint.log import logger

Result = TypeVar("Result")

RETRIES = 3
WAIT = 0.5  # seconds before the first retry; doubled before each further one
DEADLINE = 300.0  # seconds that one request may take; the client's own limits are shorter
SLOWEST = 1e6  # bytes a second: an upload of so much is given a second more
PIECE = 8 << 20  # bytes of one ranged read
TOGETHER = 4  # ranged reads under way at once
PART = 50 << 20  # bytes of a part of an upload in parts

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_SPOILT_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/(?!/)")  # what pathlib makes of a URL
_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
# Elsewhere a file appears under its name before it is whole: it is moved there when it is.
_ATOMIC = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "memory"}


def is_url(path: str | os.PathLike[str]) -> bool:
    """Say whether a path is the URL of a store."""
    return isinstance(path, str) and _URL.match(path) is not None


def refuse(path: str | os.PathLike[str], hint: str = "copy the dataset to a local folder") -> None:
    """Raise UsageError GL0002 where a URL stands in the place of a local path."""
    text = os.fspath(path)
    if is_url(text) or _SPOILT_URL.match(text):
        url = shown(text if is_url(text) else re.sub(r":/+", "://", text, count=1))
        raise UsageError("GL0002", "expected a local folder, found a URL", where=url, hint=hint)


def shown(url: str) -> str:
    """Return a URL as it may be shown: without user, password, query and fragment."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        return url
    rest = rest.partition("?")[0].partition("#")[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def clean(text: str) -> str:
    """Return an error's text without credentials."""
    text = re.sub(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s'\"<>]+", lambda m: shown(m[0]), text)
    for name in _SECRETS:
        if len(secret := os.environ.get(name, "")) > 3:
            text = text.replace(secret, "***")
    return text


class Stat(NamedTuple):
    """Size of an object and the digest that its store states of it ('' where it states none)."""

    size: int
    tag: str


class Kept(NamedTuple):
    """What a store holds of an upload."""

    size: int
    sha256: str
    tag: str


class Store:
    """One folder of a store. Can be pickled; safe across threads and forks.

    Credentials and endpoints come from the environment, as the store's own client reads them; a URL
    that holds any is refused with UsageError GL0002. `shown` is the URL as people may see it.
    """

    def __init__(self, url: str) -> None:
        self.shown = shown(url).rstrip("/")
        if urlsplit(url).query or "@" in url.partition("://")[2].partition("/")[0]:
            what = "expected a URL without user, password and query"
            hint = "credentials come from the environment, such as AWS_ACCESS_KEY_ID"
            raise UsageError("GL0002", what, where=self.shown, hint=hint)
        self.url = url.rstrip("/")
        self.scheme = url.partition("://")[0].lower()
        self._client: tuple[int, Any, str] | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["url"])  # type: ignore[misc]

    def _open(self, name: str) -> tuple[Any, str]:
        """Return this process's client and the path of an object there."""
        with self._lock:
            if self._client is None or self._client[0] != os.getpid():
                self._client = (os.getpid(), *_connect(self))
            return self._client[1], f"{self._client[2]}/{name}"

    def where(self, name: str) -> str:
        """Return an object's URL, as it may be shown."""
        return f"{self.shown}/{name}"

    def stat(self, name: str) -> Stat | None:
        """Ask for an object; None where there is none. Raises InputError GL0903."""
        fs, path = self._open(name)
        told = _retried(self, name, lambda: _absent(fs.info, path))
        if told is None or told.get("type") == "directory":
            return None
        return Stat(int(told.get("size") or 0), _tag(told))

    def get(self, name: str) -> bytes | None:
        """Return a small object; None where there is none. Raises InputError GL0903."""
        fs, path = self._open(name)
        data = _retried(self, name, lambda: _absent(fs.cat_file, path))
        return None if data is None else bytes(data)

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Return bytes [start, stop) of an object. Raises InputError GL0302, GL0903."""
        fs, path = self._open(name)
        edges = [*range(start, stop, PIECE), stop]

        def cat() -> bytes | None:
            try:
                if len(edges) == 2:
                    return bytes(fs.cat_file(path, start=start, end=stop))
                count = len(edges) - 1
                pieces = fs.cat_ranges([path] * count, edges[:-1], edges[1:], on_error="raise")
                return b"".join(pieces)
            except FileNotFoundError:
                return None

        data = _retried(self, name, cat) if stop > start else b""
        if data is None:
            raise self.lost(name)
        return data

    def pieces(self, name: str, size: int) -> Iterator[bytes]:
        """Read an object of a known size in pieces. Raises InputError GL0302, GL0903."""
        for start in range(0, size, PIECE * TOGETHER):
            yield self.read(name, start, min(size, start + PIECE * TOGETHER))

    def lost(self, name: str) -> InputError:
        """Make the error of an object that is not there."""
        return InputError("GL0302", "there is no such object", where=self.where(name))

    def put(self, name: str, path: Path) -> Kept:
        """Upload a file under its final name, whole or not at all; return what the store holds.

        What the store holds is then compared: its size, and its digest where the store states that
        of the content, else its bytes, read back. Raises ResourceError GL0007.
        """
        size = path.stat().st_size
        wanted = _digests(path)

        def send() -> Kept:
            fs, to = self._open(name)
            more = {"chunksize": PART} if self.scheme in ("s3", "s3a") else {}
            self._write(fs, to, lambda to: fs.put_file(str(path), to, **more))
            there = self.stat(name)
            if there is None or there.size != size:
                found = "no object" if there is None else f"{there.size} bytes"
                raise OSError(f"the upload was not kept: expected {size} bytes, found {found}")
            if there.tag not in wanted.tags and self._sha256(name, size) != wanted.sha256:
                raise OSError("the upload was not kept: the store holds other bytes")
            return Kept(size, wanted.sha256, there.tag)

        return _retried(self, name, send, write=True, seconds=DEADLINE + size / SLOWEST)

    def holds(self, name: str, size: int, sha256: str, tag: str) -> bool:
        """Say whether the store still holds what `put` returned: by the store's digest, if any."""
        there = self.stat(name)
        if there is None or there.size != size:
            return False
        return bool(tag and there.tag == tag) or self._sha256(name, size) == sha256

    def _write(self, fs: Any, to: str, write: Callable[[str], object]) -> None:
        """Write an object that appears whole: where the store is not so itself, it is moved."""
        if self.scheme in _ATOMIC:
            write(to)
            return
        temporary = f"{to}.tmp.{os.urandom(6).hex()}"
        fs.makedirs(to.rpartition("/")[0], exist_ok=True)
        try:
            write(temporary)
            fs.mv(temporary, to)
        except BaseException:
            _absent(fs.rm_file, temporary)
            raise

    def put_bytes(self, name: str, data: bytes) -> None:
        """Upload a small object and read it back. Raises ResourceError GL0007."""

        def send() -> None:
            fs, to = self._open(name)
            self._write(fs, to, lambda to: fs.pipe_file(to, data))
            if _absent(fs.cat_file, to) != data:
                raise OSError("the upload was not kept: the store holds other bytes")

        _retried(self, name, send, write=True)

    def claim(self, name: str, data: bytes) -> bytes:
        """Create an object where there is none yet; return what stands there afterwards.

        Exclusive where the store can create so (S3, GCS, Azure); elsewhere two callers at the same
        instant may both read their own bytes. Raises ResourceError GL0007.
        """
        before = self.get(name)
        if before is not None:
            return before

        def send() -> None:
            fs, path = self._open(name)
            if self.scheme not in _ATOMIC:
                self._write(fs, path, lambda to: fs.pipe_file(to, data))
                return
            try:
                fs.pipe_file(path, data, mode="create")
            except FileExistsError:
                return
            except (OSError, TypeError, ValueError, NotImplementedError):
                if self.get(name) is None:  # no such thing as creating here: write it plainly
                    fs.pipe_file(path, data)

        _retried(self, name, send, write=True)
        after = self.get(name)
        if after is None:
            what = "cannot write: what was written is not there"
            raise ResourceError("GL0007", what, where=self.where(name))
        return after

    def remove(self, name: str) -> None:
        """Remove an object; none there is as good."""
        fs, path = self._open(name)
        _retried(self, name, lambda: _absent(fs.rm_file, path), write=True)

    def leave(self, folder: str) -> None:
        """Remove an empty folder, where the store has folders at all."""
        if self.scheme not in _ATOMIC:
            fs, path = self._open(folder)
            with suppress(OSError, NotImplementedError):
                fs.rmdir(path)

    def entry(self, name: str) -> dict[str, Any]:
        """Return name, size and SHA-256 of an object, as `seal.entry` does of a file.

        Raises InputError GL0302, from a FileNotFoundError, where there is none; GL0903.
        """
        there = self.stat(name)
        if there is None:
            raise self.lost(name) from FileNotFoundError(name)
        sha256 = self._sha256(name, there.size)
        return {"name": name.rpartition("/")[2], "bytes": there.size, "sha256": sha256}

    @property
    def folder_name(self) -> str:
        """A name for a local folder of what lies here: of no other place."""
        name = re.sub(r"[^A-Za-z0-9.-]+", "_", self.shown.rpartition("/")[2]) or "dataset"
        return f"{name}-{hashlib.sha256(self.shown.encode()).hexdigest()[:16]}"

    def _sha256(self, name: str, size: int) -> str:
        hasher = hashlib.sha256()
        for piece in self.pieces(name, size):
            hasher.update(piece)
        return hasher.hexdigest()


def _connect(store: Store) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        hint = "pip install 'glint-faces[s3]'"
        raise UsageError("GL0003", "fsspec is not installed", hint=hint) from None
    try:
        # No cache of listings, and no instance shared with others: what is asked is what is there.
        fs, path = url_to_fs(store.url, use_listings_cache=False)
    except ImportError as error:
        what = f"no client for {store.scheme}:// is installed: {clean(str(error))[:200]}"
        hint = "for s3://: pip install 'glint-faces[s3]'"
        raise UsageError("GL0003", what, where=store.shown, hint=hint) from None
    except Exception as error:  # each client has its own
        what = f"not a usable URL: {clean(str(error))[:200]}"
        raise UsageError("GL0002", what, where=store.shown) from None
    return fs, str(path).rstrip("/")


def _absent(call: Callable[[str], Result], path: str) -> Result | None:
    """Return what `call(path)` gives, None where there is no such object."""
    try:
        return call(path)
    except FileNotFoundError:
        return None


def _bounded(call: Callable[[], Result], seconds: float) -> Result:
    """Return what `call` returns, or raise TimeoutError after so many seconds."""
    told: list[Result] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            told.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True, name="glint-store")
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not told:
        raise TimeoutError(f"no answer for {seconds:.0f} s")
    return told[0]


def _retried(
    store: Store,
    name: str,
    call: Callable[[], Result],
    *,
    write: bool = False,
    seconds: float | None = None,
) -> Result:
    """Return what `call` returns; failures that may pass are retried RETRIES times.

    Raises InputError GL0903, or ResourceError GL0007 where something was to be written.
    """
    for attempt in range(RETRIES + 1):
        try:
            return _bounded(call, DEADLINE if seconds is None else seconds)
        except GlintError:
            raise
        except Exception as error:
            what = clean(f"{type(error).__name__}: {error}".strip(": "))[:300]
            if attempt < RETRIES and not isinstance(error, PermissionError):
                wait = WAIT * 2**attempt
                logger.warning("%s: %s; again in %.1f s", store.where(name), what, wait)
                time.sleep(wait)
                continue
        hint = "look at the network, the credentials and the store's own status"
        where = store.where(name)
        if write:
            raise ResourceError("GL0007", f"cannot write: {what}", where=where, hint=hint) from None
        raise InputError("GL0903", f"cannot be read: {what}", where=where, hint=hint) from None
    raise AssertionError("unreachable")


def _tag(told: dict[str, Any]) -> str:
    """Return the digest or version of the content that a store states, in hex where it is MD5."""
    if stated := told.get("ETag") or told.get("etag"):
        return str(stated).strip('"').removeprefix("W/").strip('"')
    settings = told.get("content_settings")
    stated = told.get("md5Hash") or (settings and dict(settings).get("content_md5"))
    if isinstance(stated, str):
        return base64.b64decode(stated).hex()
    return bytes(stated).hex() if stated else ""


class _Digests(NamedTuple):
    sha256: str
    tags: set[str]  # MD5 as stores state it: of the whole, and of parts


def _digests(path: Path) -> _Digests:
    whole, sha = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    parts = b""
    with path.open("rb") as file:
        while block := file.read(PART):
            whole.update(block)
            sha.update(block)
            parts += hashlib.md5(block, usedforsecurity=False).digest()
    composed = hashlib.md5(parts, usedforsecurity=False).hexdigest()
    tags = {whole.hexdigest(), f"{composed}-{max(1, len(parts) // 16)}"}
    return _Digests(sha.hexdigest(), tags)
