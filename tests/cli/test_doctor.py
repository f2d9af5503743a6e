from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from glint.cli import doctor

app = typer.Typer()
doctor.register(app)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only parts that import quickly."""
    quick = tuple(part for part in doctor.PARTS if part.name in ("pydantic", "xxhash"))
    monkeypatch.setattr(doctor, "PARTS", quick)


@pytest.mark.usefixtures("few")
def test_no_problems_found() -> None:
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "No problems found."
    assert "pydantic" in result.stdout
    found = json.loads(CliRunner().invoke(app, ["--json"]).stdout)
    assert found["schema"] == "glint/doctor-result@1"
    assert found["problems"] == []
    assert found["cores"] >= 1
    assert 0 < found["ram"]["available"] <= found["ram"]["total"]
    assert [part["works"] for part in found["parts"]] == [True, True]


def test_every_required_dependency_is_looked_at() -> None:
    required = {part.name for part in doctor.PARTS if not part.extra}
    assert {"torch", "numpy", "pyarrow", "webdataset", "simplejpeg", "safetensors"} <= required


def test_a_required_part_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    part = doctor.Part("nosuchmodule", ("no-such-distribution",))
    monkeypatch.setattr(doctor, "PARTS", (part,))
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 6
    assert "problem: nosuchmodule is required and not installed" in result.stdout
    assert "No problems" not in result.stdout


def test_an_optional_part_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    part = doctor.Part("nosuchmodule", ("no-such-distribution",), "export", "glint export")
    monkeypatch.setattr(doctor, "PARTS", (part,))
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0
    assert "absent" in result.stdout
    assert "glint export; pip install 'glint-faces[export]'" in result.stdout


def test_a_part_that_is_installed_and_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    part = doctor.Part("nosuchmodule", ("pydantic",), "export", "glint export")
    monkeypatch.setattr(doctor, "PARTS", (part,))
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 6
    assert "is installed and cannot be imported: ModuleNotFoundError" in result.stdout


def test_two_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor._version
    monkeypatch.setattr(
        doctor, "_version", lambda name: "1.15" if name.startswith("faiss") else real(name)
    )
    assert "faiss-cpu and faiss-gpu and faiss-gpu-cu12 share one folder" in doctor._two_faiss()
