"""One small synthetic world, sharded, shared by the command-line tests."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from glint.results import bench, datasets, identities, key, models
from tests import zygote

MODULES = (datasets, identities, models, bench)
ANSWERS = [one for module in MODULES for one in vars(module).values() if hasattr(one, "SCHEMA")]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def run_glint(*args: str | Path, code: int = 0, env: dict[str, str] | None = None) -> Any:
    """Run a command in a process of its own; give its JSON, or its stderr where it must fail."""
    done = subprocess.run(
        [zygote.command(), *map(str, args)],
        capture_output=True,
        text=True,
        env={**ENV, **(env or {})},
        timeout=500,
        check=False,
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    if code:
        assert "Traceback" not in done.stderr, done.stderr
        return done.stderr
    if "--json" not in args:
        return done.stdout
    answer = json.loads(done.stdout)
    documented(answer)
    return answer


def documented(answer: dict[str, Any]) -> None:
    """Hold an answer of --json against the dataclasses of its schema: keys, order and types."""
    held, known = {**answer}, dict[str, str]()
    schema = held.pop("schema")
    kinds = [one for one in ANSWERS if schema == one.SCHEMA]
    assert kinds, f"no class of glint.results has the schema {schema}"
    for kind in kinds:
        names = {key(one): one for one in fields(kind)}
        wanted = {name for name, one in names.items() if one.default is MISSING}
        if wanted <= held.keys() <= names.keys():
            assert [name for name in names if name in held] == [*held], f"order of {kind}"
            TypeAdapter(kind).validate_python({names[k].name: v for k, v in held.items()})
            return
        known[kind.__name__] = f"lacks {wanted - held.keys()}, more {held.keys() - names.keys()}"
    raise AssertionError(f"{[*held]}: {known}")


@pytest.fixture(scope="session")
def glint() -> Callable[..., Any]:
    return run_glint


@dataclass(frozen=True)
class Small:
    """A synthetic world and the dataset made of it."""

    world: Path
    data: Path
    pairs: Path


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    root = tmp_path_factory.mktemp("small")
    run_glint(
        "synth", root / "world", "--identities", "40", "--images", "6", "--conflicts", "3",
        "--lookalikes", "2", "--unseen", "20", "--pairs", "60", "--seed", "1", "--json",
    )  # fmt: skip
    run_glint("shard", root / "world", root / "data", "--samples-per-shard", "60", "--json")
    return Small(root / "world", root / "data", root / "world" / "pairs.bin")
