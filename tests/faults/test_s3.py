"""A dataset through an S3 server on this machine: written, read, checked, killed half way."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from glint.shards import recordio

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("s3fs", "moto", "flask")),
        reason="needs s3fs and moto: pip install 'glint-faces[stores]'",
    ),
]
URL = "s3://faces/sets/ds"
SECRET = "wJalrXUtnFEMISECRET"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def env(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    given = {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLEKEY",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "GLINT_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    s3().reset(server)
    return {**os.environ, **given}


class s3:
    """The bucket, by another client than glint's."""

    def __init__(self) -> None:
        import boto3

        self.client = boto3.client("s3")

    @staticmethod
    def reset(server: str) -> None:
        import urllib.request

        urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset", method="POST"))
        s3().client.create_bucket(Bucket="faces")

    def files(self) -> dict[str, bytes]:
        listed = self.client.list_objects_v2(Bucket="faces").get("Contents", [])
        return {
            entry["Key"].removeprefix("sets/ds/"): self.client.get_object(
                Bucket="faces", Key=entry["Key"]
            )["Body"].read()
            for entry in listed
        }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, jpeg: Callable[[int], bytes]) -> Path:
    folder = tmp_path_factory.mktemp("world")
    images = [jpeg(k) for k in range(20)]
    with recordio.Writer(folder / "train.rec", folder / "train.idx") as writer:
        for key in range(1200):
            image = b"" if key % 500 == 7 else images[key % 20]
            writer.write(key, recordio.pack(float(key // 8), key, 0, image))
    return folder


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    subprocess.run(command(world, str(out), 1), check=True, capture_output=True)
    return out


def command(world: Path, out: str, workers: int) -> list[str]:
    return glint(
        "shard", str(world), out, "--samples-per-shard", "50", "--workers", str(workers), "--json"
    )


def glint(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "glint", *arguments]


def local(root: Path) -> dict[str, bytes]:
    made = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }
    made.pop("_glint/lock")
    return made


def run(argv: list[str], env: dict[str, str]) -> dict[str, object]:
    done = subprocess.run(argv, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


def test_written_read_and_verified(world: Path, whole: Path, env: dict[str, str]) -> None:
    told = run(command(world, URL, 2), env)
    assert told["out"] == URL and told["shards"] == 24 and told["written"] == 1197
    assert s3().files() == local(whole)
    assert not any(SECRET.encode() in data for data in s3().files().values())
    staging = Path(env["GLINT_CACHE"]) / "staging"
    assert list(staging.rglob("*.tar")) == []
    again = run(command(world, URL, 2), env)
    assert again["resumed_shards"] == 24 and again["digest"] == told["digest"]
    assert run(glint("info", URL, "--json"), env)["digest"] == told["digest"]
    assert run(glint("verify", URL, "--json"), env)["ok"]
    deep = run(glint("verify", URL, "--deep", "--workers", "2", "--json"), env)
    assert deep["ok"] and deep["samples"] == 1197

    from glint.shards import labels
    from glint.shards.dataset import Dataset
    from glint.stream.loader import Stream

    streams = []
    for where in (URL, whole):
        data = Dataset(where)
        table = labels.current(data.root, data.classes)
        streams.append(Stream(data, labels=table, batch=32, seed=1, workers=2))
    count = 0
    for ours, plain in zip(streams[0].batches(0), streams[1].batches(0), strict=True):
        assert ours.row.tolist() == plain.row.tolist() and ours.image.equal(plain.image)
        count += 1
    assert count == 1197 // 32


def test_another_plan_is_refused(world: Path, env: dict[str, str]) -> None:
    run(command(world, URL, 2), env)
    done = subprocess.run(
        [*command(world, URL, 2), "--seed", "5"], env=env, capture_output=True, text=True
    )
    assert done.returncode == 7 and "GL0006" in done.stderr and "options.seed was 0" in done.stderr


def test_killed_and_continued_on_another_machine(
    world: Path, whole: Path, env: dict[str, str], tmp_path: Path
) -> None:
    unfinished = 0
    for round_ in range(4):
        s3.reset(env["AWS_ENDPOINT_URL"])
        begun = subprocess.Popen(
            command(world, URL, 2), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        entries: list[str] = []
        while len(entries) < 1 + 5 * round_ and begun.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
            entries = [name for name in s3().files() if name.startswith("_glint/parts/0")]
            entries = [name for name in entries if name.endswith(".json")]
        begun.send_signal(signal.SIGKILL)
        begun.wait()
        time.sleep(0.5)  # workers die with their parent
        finals = s3().files()
        unfinished += "manifest.json" not in finals
        for name, data in finals.items():
            if name.startswith("data/"):
                assert data == local(whole)[name], name
        # another machine: nothing of the first one's staging folder is there
        shutil.rmtree(env["GLINT_CACHE"])
        told = run(command(world, URL, 2), env)
        assert told["resumed_shards"] >= len(entries)
        assert s3().files() == local(whole)
        shutil.rmtree(env["GLINT_CACHE"], ignore_errors=True)
    assert unfinished >= 2


def test_a_large_shard_goes_up_in_parts(
    env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from glint.files import store

    monkeypatch.setattr(store, "PART", 5 << 20)
    path = tmp_path / "x"
    path.write_bytes(os.urandom(14 << 20))
    there = store.Store(URL)
    kept = there.put("data/x", path)
    assert kept.tag.endswith("-3") and kept.tag in store._digests(path).tags
    assert b"".join(there.pieces("data/x", kept.size)) == path.read_bytes()


def test_a_claim_is_exclusive(env: dict[str, str]) -> None:
    from glint.files.store import Store

    assert Store(URL).claim("_glint/plan.json", b"1") == b"1"
    assert Store(URL).claim("_glint/plan.json", b"2") == b"1"
    fs, root = Store(URL)._open()
    with pytest.raises((FileExistsError, OSError)):
        fs.pipe_file(f"{root}/_glint/plan.json", b"2", mode="create")
    assert Store(URL).get("_glint/plan.json") == b"1"


def test_no_server_is_an_error_within_seconds(env: dict[str, str]) -> None:
    begun = time.monotonic()
    done = subprocess.run(
        glint("info", URL),
        env={**env, "AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3 and "GL0903" in done.stderr and "Traceback" not in done.stderr
    assert SECRET not in done.stderr and time.monotonic() - begun < 120
