"""What people see of a command: foreign names in it steer no terminal and forge no line."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from glint import log
from glint.cli import console
from glint.errors import InputError
from glint.files import atomic, seal
from glint.pipelines.dataset import shard

EVIL = "\x1b]0;owned\x07 \x9b31m \u202egpj.exe\u2066 \r\x7f\ufeff \udcff"
BAD = [*EVIL.replace(" ", ""), "\n"]
BAD = [char for char in BAD if not (char.isascii() and char.isprintable())]


@dataclass(frozen=True)
class Named:
    SCHEMA: ClassVar[str] = "named"
    name: str
    counts: dict[str, int] = field(default_factory=dict)
    text: str = ""


def seen(text: str) -> list[str]:
    return [char for char in BAD if char != "\n" and char in text]


def test_results_errors_and_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    found = Named(EVIL + "\nresult       all as written", {EVIL: 1}, "one\ntwo")
    console.run(lambda: found, False, say=lambda r: f"name {r.name} {r.counts}\n{r.text}")
    out = capsys.readouterr().out
    assert seen(out) == [] and "\\x1b]0;owned\\x07" in out and "\\u202e" in out
    assert out.splitlines()[1:] == ["one", "two"]

    def fail() -> Named:
        raise InputError("GL0301", f"found {EVIL}\nhint: rm -r", where=EVIL, hint=EVIL)

    with pytest.raises(SystemExit):
        console.run(fail, False)
    err = capsys.readouterr().err
    assert seen(err) == [] and len(err.splitlines()) == 2
    log.logger.warning("the shard %s", EVIL)
    with console.progress("shards") as show:
        show(0, 1, EVIL)
    assert seen(capsys.readouterr().err) == []
    logging.getLogger("glint").handlers.clear()


def test_what_is_fit_to_be_seen_stays() -> None:
    for text in (
        "\u00c5ngstr\u00f6m \u738b\u5c0f\u660e \u0645\u062d\u0645\u062f\t\u00fc",
        "\u0928\u092e\u0938\u094d\u0924\u0947",
        "a\u200cb \u200d",
        "line\nline",
    ):
        assert log.plain(text) == text


def test_commands_on_a_dataset_with_such_names(
    tmp_path: Path, jpeg: Callable[[int], bytes]
) -> None:
    for i in range(8):
        path = tmp_path / "src" / f"id{i // 4}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(i) if i % 4 else b"no image")
    data = tmp_path / "set\x1b[5m\u202e"
    shard.shard(tmp_path / "src", data, max_bad=1)
    path = data / "manifest.json"
    said = atomic.read_json(path)
    said |= {"source": EVIL, "quarantine_reasons": {EVIL: 2}, "notes": {EVIL: 2}, "layout": EVIL}
    said["shards"][0]["name"] = EVIL.replace("/", "") + "\nresult all as written"
    atomic.write_json(path, seal.sealed(said))
    (tmp_path / "\x1b.toml").write_text('"\\u001b[5m" = "\\u202e"\nname = "\\u009b"\n')
    for args, code in (
        (["shard", tmp_path / "src", tmp_path / "new\x1b"], 0),
        (["info", data], 0),
        (["card", data], None),
        (["verify", data, "--deep"], 3),
        (["validate", tmp_path / "\x1b.toml"], 2),
        (["info", data, "\x1b[5mmore"], 2),
        (["import", data / "weights\x1b.pt", tmp_path / "out", "--recipe", "r18"], None),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "glint", *map(str, args)],
            capture_output=True, timeout=100, check=False,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
        )  # fmt: skip
        told = (done.stdout + done.stderr).decode("ascii")
        assert code is None or done.returncode == code, told
        assert "Traceback" not in told
        assert [char for char in told if not char.isprintable() and char not in "\n\t"] == [], args


@pytest.mark.parametrize(
    "code, said",
    [(errno.ENOSPC, "GL0901"), (errno.EIO, "GL0007"), (errno.EROFS, "GL0007"), (errno.EBADF, "")],
)
def test_a_disk_that_fails_is_named_wherever_it_does(
    capsys: pytest.CaptureFixture[str], code: int, said: str
) -> None:
    def fail() -> None:
        raise OSError(code, os.strerror(code), "/disk/file")

    with pytest.raises(SystemExit if said else OSError) as left:
        console.run(fail, False)
    if said:
        assert left.value.code == 6
        assert f"error {said}" in (told := capsys.readouterr().err) and "/disk/file" in told
