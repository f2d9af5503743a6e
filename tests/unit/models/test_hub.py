"""`glint push` and `glint pull` by the command line against a hub of our own on loopback."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("huggingface_hub")
ROOT = Path(__file__).parents[3]


class Hub(ThreadingHTTPServer):
    """Repositories in memory, by the endpoints that huggingface_hub calls."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.repos: dict[str, dict[str, Any]] = {}  # "models/a/b" -> private, commits
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.cut = -1  # bytes of an object after which a download breaks off
        self.spoil = ""  # path whose bytes are others than listed
        self.extra: dict[str, Any] = {}  # entries that the tree lists besides

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *given: Any) -> None:
        pass

    def say(self, body: Any, code: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def parts(self) -> list[str]:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        return path.strip("/").split("/")

    def body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_PUT(self) -> None:
        (_, oid), data = self.parts(), self.body()
        assert hashlib.sha256(data).hexdigest() == oid
        self.server.objects[oid] = data
        self.say({})

    def do_POST(self) -> None:
        parts, data = self.parts(), self.body()
        if self.headers.get("Authorization") != "Bearer good":
            return self.say({"error": "who?"}, 401)
        if parts == ["api", "repos", "create"]:
            asked = json.loads(data)
            key = f"{asked.get('type', 'model')}s/{asked['organization']}/{asked['name']}"
            there = key in self.server.repos
            hidden = asked.get("private") or asked.get("visibility") == "private"
            self.server.repos.setdefault(key, {"private": bool(hidden), "commits": {"0" * 40: {}}})
            return self.say(
                {"url": f"{self.server.url}/{key.removeprefix('models/')}"}, 409 if there else 200
            )
        if parts[1] == "validate-yaml":
            return self.say({"errors": [], "warnings": []})
        if parts[-1] == "batch":
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.server.url}/up/{one['oid']}"}}}
                if one["oid"] not in self.server.objects
                else one
                for one in json.loads(data)["objects"]
            ]
            return self.say({"transfer": "basic", "objects": objects})
        repo = self.server.repos["/".join(parts[1:4])]
        if parts[4] == "preupload":
            modes = [
                {"path": one["path"], "shouldIgnore": False,
                 "uploadMode": "regular" if one["size"] < 2000 else "lfs"}
                for one in json.loads(data)["files"]
            ]  # fmt: skip
            return self.say({"files": modes})
        assert parts[4] == "commit"
        files = dict(list(repo["commits"].values())[-1])
        for line in data.splitlines():
            one = json.loads(line)
            if one["key"] == "file":
                files[one["value"]["path"]] = ("", base64.b64decode(one["value"]["content"]))
            elif one["key"] == "lfsFile":
                oid = one["value"]["oid"]
                files[one["value"]["path"]] = (oid, self.server.objects[oid])
        oid = hashlib.sha1(data + bytes(len(repo["commits"]))).hexdigest()
        repo["commits"][oid] = files
        place = "/".join(parts[1:4]).removeprefix("models/")
        url = f"{self.server.url}/{place}/commit/{oid}"
        self.say({"commitUrl": url, "commitOid": oid, "success": True})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.parts()
        api = parts[0] == "api"
        if api:
            parts = parts[1:]
        elif parts[0] != "datasets":
            parts = ["models", *parts]
        repo = self.server.repos.get("/".join(parts[:3]))
        good = self.headers.get("Authorization") == "Bearer good"
        if repo is None or (repo["private"] and not good):
            return self.say({"error": "no"}, 404, X_Error_Code="RepoNotFound")
        revision = parts[4] if len(parts) > 4 else "main"
        newest = list(repo["commits"])[-1]
        commit = newest if revision == "main" else revision
        if commit not in repo["commits"]:
            return self.say({"error": "no"}, 404, X_Error_Code="RevisionNotFound")
        files = repo["commits"][commit]
        if not api:
            return self.file(commit, files, "/".join(parts[5:]))
        if len(parts) > 3 and parts[3] == "tree":
            return self.say([*map(entry, files.items()), *self.server.extra.values()])
        listed = [{"rfilename": path} for path in [*files, *self.server.extra]]
        name = "/".join(parts[1:3])
        self.say({"id": name, "sha": commit, "private": repo["private"], "siblings": listed})

    def file(self, commit: str, files: dict[str, Any], path: str) -> None:
        if path not in files:
            return self.say({"error": "no"}, 404, X_Error_Code="EntryNotFound")
        oid, data = files[path]
        tag = oid or git_sha1(data)
        if path == self.server.spoil:
            data = bytes(len(data))
        start = int((self.headers.get("Range") or "bytes=0-").split("=")[1].split("-")[0])
        headers = {"ETag": f'"{tag}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        if start:
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if self.command == "GET" and oid and 0 <= self.server.cut < len(data):
            self.send_response(206 if start else 200)
            for name, value in {"Content-Length": str(len(data) - start), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(data[start : max(start, self.server.cut)])
            self.wfile.flush()
            self.close_connection = True
            return self.connection.close()
        self.say(data[start:], 206 if start else 200, **headers)


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def entry(file: tuple[str, tuple[str, bytes]]) -> dict[str, Any]:
    path, (oid, data) = file
    made = {"type": "file", "path": path, "size": len(data), "oid": git_sha1(data)}
    if oid:
        made["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 130}
    return made


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def glint(hub: Hub, tmp_path: Path) -> Callable[..., tuple[int, dict[str, Any]]]:
    def call(*given: Any, token: str = "good") -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-m", "glint", *map(str, given), "--json"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url, "HF_TOKEN": token,
                 "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1",
                 "HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": "127.0.0.1"},
            capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip
        assert done.stdout, done.stderr
        return done.returncode, {**json.loads(done.stdout), "stderr": done.stderr}

    return call


def test_a_model_goes_and_comes_back(
    hub: Hub, glint: Any, toy_run: Callable[..., Path], tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    from glint.models import stored

    run = toy_run()
    code, said = glint("push", run, "me/net")
    assert code == 0, said
    assert (said["private"], said["kind"], said["files"]) == (True, "model", 3)
    repo = hub.repos["models/me/net"]
    files = repo["commits"][said["commit"]]
    assert repo["private"] and sorted(files) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads(files["config.json"][1])["backbone"]["name"] == "mobilefacenet"
    assert files["README.md"][1].startswith(b"---\nlibrary_name: glint\n")
    uploads = [one for one in hub.asked if one.startswith("PUT")]
    assert len(uploads) == 1  # the weights
    glint("push", run, "me/net")
    assert [one for one in hub.asked if one.startswith("PUT")] == uploads  # not again

    code, _ = glint("pull", "me/net", "back", token="other")
    assert code == 2 and not (tmp_path / "back").exists()
    code, said = glint("pull", "me/net", "back")
    assert (code, said["files"]) == (0, 3), said
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == sorted(files)
    for path, (_, data) in files.items():
        assert (tmp_path / "back" / path).read_bytes() == data
    assert not list(tmp_path.glob("back.*"))
    assert load_file(tmp_path / "back" / "model.safetensors").keys()
    image = torch.rand(2, 3, 112, 112)
    nets = [stored.load(path).net for path in (run, tmp_path / "back")]
    assert torch.equal(nets[0](image), nets[1](image))
    code, said = glint("pull", "me/net", "back")
    assert code == 4  # never over something
    with (tmp_path / "back" / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"abcd")
    with pytest.raises(Exception, match="GL0701"):
        stored.load(tmp_path / "back")


@pytest.mark.slow
def test_a_broken_download_is_continued_and_a_wrong_one_refused(
    hub: Hub, glint: Any, toy_run: Callable[..., Path], tmp_path: Path
) -> None:
    code, said = glint("push", toy_run(), "me/net")
    data = hub.repos["models/me/net"]["commits"][said["commit"]]["model.safetensors"][1]
    hub.cut = len(data) // 2
    code, said = glint("pull", "me/net", "back")
    assert code == 6 and "GL0903" in said["stderr"], said
    assert not (tmp_path / "back").exists()
    hub.cut, hub.spoil = -1, "model.safetensors"
    code, said = glint("pull", "me/net", "other")  # as many bytes, but others
    assert code == 3 and "checksum" in said["stderr"], said
    assert not (tmp_path / "other").exists()
    hub.spoil = ""
    for out in ("back", "other"):
        code, said = glint("pull", "me/net", out)
        assert code == 0, said
        assert (tmp_path / out / "model.safetensors").read_bytes() == data
    hub.extra["x"] = {"type": "file", "path": "../../out.txt", "size": 1, "oid": "0" * 40}
    code, said = glint("pull", "me/net", "third")
    assert code == 8 and "../../out.txt" in said["stderr"] and not (tmp_path / "third").exists()


def test_what_may_not_be_seen_is_not_pushed(
    hub: Hub, glint: Any, toy_run: Callable[..., Path], tmp_path: Path, jpeg: Callable[[int], bytes]
) -> None:
    hub.repos["models/me/open"] = {"private": False, "commits": {"0" * 40: {}}}
    code, said = glint("push", toy_run(), "me/open")
    assert code == 2 and "public" in said["stderr"]
    assert len(hub.repos["models/me/open"]["commits"]) == 1 and not hub.objects
    for i in range(12):
        (tmp_path / "raw" / f"p{i % 3}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / f"p{i % 3}" / f"{i}.jpg").write_bytes(jpeg(i))
    assert glint("shard", "raw", "data")[0] == 0
    code, said = glint("push", "data", "me/faces")
    assert code == 8 and "personal data" in said["stderr"]
    assert "datasets/me/faces" not in hub.repos
    code, said = glint("push", "data", "me/faces", "--these-faces-may-be-shared")
    assert code == 0, said
    assert (said["kind"], said["private"]) == ("dataset", True)
    code, said = glint("pull", "datasets/me/faces", "back")
    assert code == 0, said
    assert glint("verify", "back", "--decode")[0] == 0
    code, said = glint("push", "raw", "me/folder", "--these-faces-may-be-shared")
    assert code != 0 and "models/me/folder" not in hub.repos
    assert glint("push", "data", "nonsense")[0] == 2
