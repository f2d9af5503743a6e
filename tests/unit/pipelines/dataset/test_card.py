"""glint card: true numbers, no silence about licence and consent, nobody's words lost."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from glint.errors import BusyError, InputError, UsageError
from glint.pipelines.dataset import card as stage
from glint.pipelines.dataset import drop, merge, reshard, shard
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.shards.verify import verify

SAID = {"licence": "CC-BY-NC-4.0", "consent": "All signed form 7.", "contact": "me@example.org"}


@pytest.fixture
def data(tmp_path: Path, jpeg: Callable[[int], bytes]) -> Path:
    """Give 16 images of 4 identities (1, 3, 5 and 7 images), one of 17 records quarantined."""
    number = 0
    for who, count in enumerate((1, 3, 5, 7)):
        for _ in range(count):
            path = tmp_path / "my faces" / f"id{who}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(number))
            number += 1
    (tmp_path / "my faces/id0/x.jpg").write_bytes(b"<html>")
    shard.shard(tmp_path / "my faces", tmp_path / "set", shard.Options(6, seed=2))
    return tmp_path / "set"


def section(text: str, title: str) -> str:
    found = re.search(rf"^##+ {re.escape(title)}\n(.*?)(?=^##? |\Z)", text, re.M | re.S)
    assert found, title
    return found[1]


def test_numbers_are_the_tables(data: Path) -> None:
    result = stage.card(data, **SAID)
    text = (data / "README.md").read_text()
    assert result.text == text and result.license == "cc-by-nc-4.0"
    front = text.split("---\n")[1].splitlines()
    assert front[0] == "license: cc-by-nc-4.0" and 'pretty_name: "set"' in front
    assert "    path: data/*.tar" in front and "- n<1K" in front
    holds = section(text, "What it holds")
    for row in (
        "| images | 16 |",
        "| identities | 4 |",
        "| shards | 3 |",
        "| images per identity: least, median, most | 1, 4, 7 |",
        "| images of 112 x 112 pixels | 16 |",
    ):
        assert row in holds, row
    out = section(text, "What was left out")
    assert "17 records were read = 16 written + 1 quarantined." in out
    assert "| not-an-image | 1 |" in out
    assert "glint shard 'my faces' DATASET --samples-per-shard 6 --seed 2" in text
    assert Dataset(data).digest in text and "train-{000000..000002}.tar" in text
    assert "No label version was ever applied." in text
    assert verify(data, deep=True).ok
    assert "\n\n\n" not in text and text.endswith("-->\n")


def test_conflicts_and_takedowns(data: Path) -> None:
    labels.apply(
        data,
        np.array([0, 1, 1, 2]),
        np.array([[0, 1]]),
        {"stage": "dedup-conflicts", "report": "sha256:12", "groups": 1, "masks": 1},
    )
    drop.drop(data, ["id3"], "asked | to")
    text = stage.card(data, **SAID).text
    told = " ".join(section(text, "Identity conflicts").split())
    assert "Label version 2 is in force: 2 classes. 1 labels were merged" in told
    assert "1 dropped, 1 pairs of classes masked" in told
    assert "| apply | 1 | dedup-conflicts | groups 1, masks 1, report sha256:12 |" in told
    assert r"| apply | 2 | drop | labels 3, reason asked \| to |" in told
    assert "1 request(s) were honoured, for 1 identities and 0" in text
    made = section(text, "How it was made")
    assert "glint dedup-conflicts apply REPORT\nglint drop DATASET --identity LABEL" in made


def test_rewritten_datasets_name_their_sources(data: Path, tmp_path: Path) -> None:
    reshard.reshard(data, tmp_path / "five", 5)
    drop.drop(tmp_path / "five", ["0"], "x", erase=tmp_path / "less")
    merge.merge(tmp_path / "both", [data, tmp_path / "less"], samples_per_shard=9, seed=4)
    text = stage.card(tmp_path / "less", **SAID).text
    assert (
        "--samples-per-shard 6 --seed 2\nglint reshard OLD DATASET --samples-per-shard 5\n"
        "glint drop OLD --reason TEXT --erase DATASET\n"
    ) in text
    assert "17 records were read = 15 written + 1 quarantined + 1 erased." in text
    text = stage.card(tmp_path / "both", **SAID).text
    assert "glint merge set less DATASET --samples-per-shard 9 --seed 4" in text
    assert f"| less (my faces) | dataset | 15 | 4 | {Dataset(tmp_path / 'less').digest} |" in text


@pytest.mark.parametrize(
    "missing, option",
    [("licence", "--license"), ("consent", "--consent"), ("contact", "--contact")],
)
def test_silence_is_refused(data: Path, missing: str, option: str) -> None:
    for text in (None, "", "  \n", "TODO", "n/a", "Unknown"):
        with pytest.raises(UsageError, match=f"GL0002 bad-option: {option}: a card of biometric"):
            stage.card(data, **{**SAID, missing: text})
        assert not (data / "README.md").exists()
    stage.card(data, **SAID)
    path = data / "README.md"
    path.write_text(path.read_text().replace(f"\n{SAID[missing]}\n", "\nTBD\n"))
    with pytest.raises(UsageError, match=f"{option}.*found 'TBD'"):
        stage.card(data)


def test_words_between_marks_are_kept(data: Path) -> None:
    stage.card(data, **SAID, title='Faces: "one"')
    path = data / "README.md"
    text = path.read_text().replace("Nothing yet.", "Shot in 2019.\n\n| a | b |")
    text = text.replace("All signed form 7.", "All signed form 8.")
    text = text.replace("| images | 16 |", "| images | 99 |")
    text += "\n<!-- glint:keep thanks -->\nTo all.\n<!-- glint:end thanks -->\n"
    path.write_text(text)
    result = stage.card(data, contact="you@example.org")
    again = path.read_text()
    assert "Shot in 2019.\n\n| a | b |\n" in again and "All signed form 8." in again
    assert "| images | 16 |" in again and "To all." in again
    assert "you@example.org" in again and "me@example.org" not in again
    assert 'pretty_name: "Faces: \\"one\\""' in again and '\n# Faces: "one"\n' in again
    assert result.replaced == ["contact"] and "thanks" in result.kept
    assert stage.card(data).text == again  # and nothing more changes
    assert stage.kept(path)["notes"] == "Shot in 2019.\n\n| a | b |"


def test_a_foreign_readme_is_left_alone(data: Path) -> None:
    (data / "README.md").write_text("# mine\n")
    with pytest.raises(BusyError, match=r"GL0004.*not a card that glint made"):
        stage.card(data, **SAID)
    assert (data / "README.md").read_text() == "# mine\n"


def test_a_lost_mark_loses_no_words(data: Path) -> None:
    stage.card(data, **SAID)
    path = data / "README.md"
    whole = path.read_text()
    for spoilt in (
        whole.replace("<!-- glint:end notes -->", ""),
        whole.replace("<!-- glint:keep notes -->", ""),
        whole + "<!-- glint:keep notes -->\n2\n<!-- glint:end notes -->\n",
    ):
        path.write_text(spoilt)
        with pytest.raises(InputError, match=r"GL0307 bad-card.*glint:keep notes"):
            stage.card(data)
        assert path.read_text() == spoilt


def test_marks_in_words_are_refused(data: Path) -> None:
    with pytest.raises(UsageError, match="--consent: the text holds a mark"):
        stage.card(data, **{**SAID, "consent": "ok <!-- glint:end consent -->"})


def test_dry_run_writes_nothing(data: Path) -> None:
    result = stage.card(data, **SAID, dry_run=True)
    assert "## Licence" in result.text and not (data / "README.md").exists()


def test_licences() -> None:
    assert stage.hub_license("MIT") == ("mit", "MIT")
    assert stage.hub_license("Ours.\nSee below.") == ("other", "Ours.")


def test_another_licence_has_a_name(data: Path) -> None:
    text = stage.card(data, **{**SAID, "licence": 'Academic "only"\nNo redistribution.'}).text
    assert 'license: other\nlicense_name: "Academic \\"only\\""\n' in text
    name = re.search(r"^license_name: (.*)$", text, re.M)
    assert name and json.loads(name[1]) == 'Academic "only"'
    assert "No redistribution." in section(text, "Licence")


def test_histogram() -> None:
    lines = stage.histogram(np.array([0, 1, 2, 3, 3, 900])).splitlines()
    told = {line.split()[0]: (int(line.split()[1]), line.count("#")) for line in lines[1:]}
    assert told["0"] == (1, 17) and told["1"] == (1, 17) and told["2-3"] == (3, 50)
    assert told["512-1023"] == (1, 17) and told["4-7"] == (0, 0) and len(told) == 11
    assert stage.histogram(np.empty(0, np.int64)) == "no identities"


@pytest.mark.parametrize(
    "n, name",
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (42_474_558, "10M<n<100M"),
        (10**9, "1B<n<10B"),
    ],
)
def test_size_category(n: int, name: str) -> None:
    assert stage._size_category(n) == name
