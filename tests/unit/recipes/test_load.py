from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from glint.errors import UsageError
from glint.recipes.load import Table, dump, load


class Inner(Table):
    lr: Annotated[float, Field(gt=0)]
    kind: Literal["sgd", "adamw"] = "sgd"
    steps: int = 3
    fast: bool = False
    names: tuple[str, ...] = ()
    note: str | None = None

    def mistakes(self) -> Iterator[tuple[str, str]]:
        if self.kind == "adamw" and self.lr > 1:
            yield "lr", "too large for adamw"
        if self.steps > 100:
            yield "steps", "too many"


class Outer(Table):
    path: str
    optim: Inner
    options: dict[str, int | str | list[int]] = Field(default_factory=dict)


GOOD = """
path = "a"
[optim]
lr = 1
names = ["x", "y"]
"""


def mistakes(text: str, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(text, Outer, overrides)
    assert caught.value.code == "GL0102"
    assert caught.value.exit_code == 2
    return caught.value.what


def test_good_values() -> None:
    made = load(GOOD, Outer)
    assert made.optim.lr == 1.0
    assert isinstance(made.optim.lr, float)  # a whole number fills a float
    assert made.optim.names == ("x", "y")  # an array fills a tuple
    assert made.optim.kind == "sgd"


def test_every_mistake_at_once() -> None:
    what = mistakes('pth = "a"\n[optim]\nlr = "fast"\nkind = "sdg"\nsteps = 1.5\nfast = 1\nl = 2\n')
    assert what.splitlines()[0] == "7 mistakes"
    for line in (
        'path: missing, expected text in quotes, did you write it as "pth"?',
        "pth: unknown key, did you mean path?",
        "optim.l: unknown key, did you mean optim.lr?",
        'optim.lr: expected a number, found "fast"',
        'optim.kind: expected one of "sgd" or "adamw", found "sdg", did you mean "sgd"?',
        "optim.steps: expected a whole number, found 1.5",
        "optim.fast: expected true or false, found 1",
    ):
        assert f"  {line}" in what.splitlines()


def test_one_mistake_stands_on_the_line() -> None:
    assert (
        mistakes(GOOD.replace("lr = 1", "lr = 0")) == "optim.lr: expected a number > 0.0, found 0"
    )
    assert mistakes("[optim]\nlr = 1\n") == "path: missing, expected text in quotes"
    assert mistakes('path = "a"\n') == "optim: missing, expected a table [optim]"


def test_values_that_do_not_fit_together_are_all_told() -> None:
    what = mistakes(GOOD + 'kind = "adamw"\nsteps = 101\n', "optim.lr=2")
    assert "optim.lr: too large for adamw" in what
    assert "optim.steps: too many" in what


def test_a_union_is_one_mistake() -> None:
    what = mistakes(GOOD + "[options]\na = 1.5\n")
    assert what == ("options.a: expected a whole number or text in quotes or an array, found 1.5")


def test_dates_are_refused() -> None:
    assert "path: expected text in quotes" in mistakes(GOOD.replace('"a"', "2026-11-22"))


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optim.lr=0.5", 0.5),
        ("optim.lr=.5", 0.5),
        ("optim.lr = 1e-3", 1e-3),
        ("optim.steps=7", 7),
        ("optim.fast=true", True),
        ("optim.kind=adamw", "adamw"),
        ('optim.kind="adamw"', "adamw"),
        ('optim.names=["p", "q"]', ("p", "q")),
        ("path=/data/faces", "/data/faces"),
        ("path=123", "123"),
        ("path=a=b", "a=b"),
        ("path=", ""),
        ("path=2026-11-22", "2026-11-22"),
        ("options.deep=[1, 2]", [1, 2]),
    ],
)
def test_overrides(override: str, value: object) -> None:
    here: object = load(GOOD, Outer, [override])
    for key in override.partition("=")[0].strip().split("."):
        here = here[key] if isinstance(here, dict) else getattr(here, key)
    assert here == value
    assert type(here) is type(value)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optim.lrr=1", "optim.lrr: unknown key, did you mean optim.lr? (from --set)"),
        ("lr=1", "lr: unknown key, did you mean optim.lr? (from --set)"),
        ("zzz=1", "zzz: unknown key, known here: path, optim, options (from --set)"),
        ("path.x=1", "override 'path.x=1': path is a value, not a table"),
        ("optim.lr", "override 'optim.lr': expected key=value, as in optim.lr=0.1"),
        ("optim..lr=1", "override 'optim..lr=1': expected key=value, as in optim.lr=0.1"),
        ("optim=3", "optim: expected a table, found 3 (from --set)"),
        ("optim.names=x", 'optim.names: expected an array, found "x" (from --set)'),
        ("optim.steps=1.0", "optim.steps: expected a whole number, found 1.0 (from --set)"),
        ("path=\udcff", r"override 'path=\udcff': not UTF-8 text"),
        ("optim.lr=1\nx = 2", 'optim.lr: expected a number, found "1\\nx = 2" (from --set)'),
    ],
)
def test_overrides_that_are_wrong(override: str, told: str) -> None:
    assert mistakes(GOOD, override) == told


def test_the_last_override_wins() -> None:
    assert load(GOOD, Outer, ["optim.lr=2", "optim.lr=3"]).optim.lr == 3


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(GOOD)
    assert load(file, Outer) == load(str(file), Outer) == load(GOOD, Outer)
    with pytest.raises(UsageError) as caught:
        load(tmp_path / "b.toml", Outer)
    assert caught.value.code == "GL0103"
    file.write_bytes(b'path = "\xff"')
    with pytest.raises(UsageError, match="not UTF-8 text: byte 8 is 0xff") as caught:
        load(file, Outer)
    assert caught.value.where == str(file)
    with pytest.raises(UsageError) as caught:
        load(tmp_path, Outer)
    assert caught.value.code == "GL0103"


@pytest.mark.parametrize(
    "text", ["a = = 1\n", "a = 1\na = 2\n", "a = " + "[" * 20000 + "\n", "a = " + "9" * 5000 + "\n"]
)
def test_not_toml(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(text, Outer)
    assert caught.value.code == "GL0101"
    assert "not valid TOML" in caught.value.what


def test_dump_leaves_out_none_and_reads_back() -> None:
    made = load(GOOD, Outer, ['options.a="\\u0001"'])
    text = dump(made)
    assert "note" not in text
    assert load(text, Outer) == made


def test_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        load(GOOD, Outer).path = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("value", "told"),
    [("[" * 300 + "]" * 300, "nested too deep"), ("0x" + "f" * 9000, "too large to be read")],
)
def test_values_beyond_reason(value: str, told: str) -> None:
    assert told in mistakes(f"{GOOD}[options]\na = {value}\n")
