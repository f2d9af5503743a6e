"""The arithmetic of draws, and the table that carries it."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from glint.errors import BusyError, UsageError
from glint.pipelines.balance import Options, balance, gini, plan, tail_share
from glint.shards import labels

COUNTS = np.array([1, 2, 3, 10, 100, 0])


def test_the_default_draws_every_image_once() -> None:
    got = plan(COUNTS, Options())
    np.testing.assert_allclose(got.draws_C, COUNTS)
    np.testing.assert_allclose(got.weight_C, COUNTS)
    np.testing.assert_array_equal(got.repeat_C, np.ones(6))


def test_cap_and_minimum() -> None:
    got = plan(COUNTS, Options(cap=5, least=2))
    np.testing.assert_allclose(got.draws_C, [0, 2, 3, 5, 5, 0])


@pytest.mark.parametrize("power", [0.0, 0.3, 0.5, 1.0])
def test_power_keeps_the_total(power: float) -> None:
    got = plan(COUNTS, Options(power=power, least=2, most=1e9))
    assert got.draws_C.sum() == pytest.approx(115)
    kept = COUNTS >= 2
    ratio = got.draws_C[kept] / COUNTS[kept] ** power
    np.testing.assert_allclose(ratio, ratio[0])
    assert (got.draws_C[~kept] == 0).all()


def test_no_image_is_drawn_more_than_four_times() -> None:
    got = plan(COUNTS, Options(power=0.0))
    assert got.weight_C[0] == pytest.approx(116 / 5)
    np.testing.assert_allclose(got.draws_C, [4, 8, 12, 23.2, 23.2, 0])


def test_repeat_factors() -> None:
    """Hand-worked: f = n / 116; t = 0.1; factors sqrt(0.1 * 116 / n), from 1 to 3."""
    got = plan(COUNTS, Options(repeat=0.1, most=3.0))
    want = np.clip(np.sqrt(11.6 / np.array([1, 2, 3, 10, 100])), 1, 3)
    np.testing.assert_allclose(got.repeat_C[:5], want)
    np.testing.assert_allclose(got.draws_C[:5], COUNTS[:5] * want)
    assert got.draws_C[5] == 0


def test_gini_by_hand() -> None:
    assert gini(np.array([3, 3, 3])) == pytest.approx(0)
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)
    assert gini(np.array([1, 3])) == pytest.approx(0.25)
    assert gini(np.array([])) == 0


def test_tail_share_by_hand() -> None:
    assert tail_share(np.array([9, 1, 2, 8]), np.array([9.0, 1, 2, 8])) == pytest.approx(3 / 20)


@pytest.mark.parametrize(
    ("option", "what"),
    [
        ({"cap": 0}, "--cap: expected at least 1, found 0"),
        ({"power": 1.5}, "--power: expected from 0 to 1, found 1.5"),
        ({"power": float("nan")}, "--power: expected from 0 to 1, found nan"),
        ({"least": -1}, "--min: expected at least 0, found -1"),
        ({"repeat": 2.0}, "--repeat: expected a share from 0 to 1"),
        ({"most": 0.5}, "--max-repeat: expected at least 1, found 0.5"),
    ],
)
def test_bad_options(option: dict, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        Options(**option)


def test_the_table(make_dataset) -> None:
    dataset = make_dataset([5, 1, 0, 30], images=False)
    got = balance(dataset, Options(cap=10, least=2))
    assert vars(got) == {
        "identities": 4,
        "images": 36,
        "epoch_samples": 15,
        "never_seen": 2,
        "gini_before": pytest.approx(29 * 2 / 36 / 3),
        "gini_after": pytest.approx(20 / 45),
        "tail_share": 0.0,
        "label_version": 0,
        "sampling": str(dataset.root / "sampling.parquet"),
    }
    table = pq.read_table(dataset.root / "sampling.parquet")
    assert table["label"].to_pylist() == [0, 1, 2, 3]
    assert table["count"].to_pylist() == [5, 1, 0, 30]
    assert table["draws"].to_pylist() == [5, 0, 0, 10]
    about = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
    assert about["dataset"] == dataset.digest
    assert about["label_version"] == "0"
    assert json.loads(about["options"])["cap"] == 10


def test_it_follows_the_labels_in_force(make_dataset, tmp_path) -> None:
    dataset = make_dataset([5, 1, 4, 30], images=False)
    labels.apply(dataset.root, np.array([0, 1, 0, -1]), np.empty((0, 2), np.int64), {})
    got = balance(dataset, Options(), tmp_path / "s.parquet")
    table = pq.read_table(tmp_path / "s.parquet")
    assert table["count"].to_pylist() == [9, 1]
    assert (got.identities, got.images, got.label_version) == (2, 10, 1)


def test_nothing_left_to_draw(make_dataset) -> None:
    with pytest.raises(UsageError, match=r"GL0002.*no identity has 9 images, the most is 5"):
        balance(make_dataset([5, 1], images=False), Options(least=9))


def test_only_its_own_table_is_overwritten(make_dataset, tmp_path) -> None:
    dataset = make_dataset([5, 1], images=False)
    notes = tmp_path / "notes.txt"
    notes.write_text("keep me")
    for path in (dataset.root / "samples.parquet", dataset.root / "manifest.json", notes):
        before = path.read_bytes()
        with pytest.raises(BusyError, match=r"GL0004.*no sampling table that glint wrote"):
            balance(dataset, Options(), path)
        assert path.read_bytes() == before
    own = tmp_path / "own.parquet"
    balance(dataset, Options(), own)
    balance(dataset, Options(cap=2), own)
    assert pq.read_table(own)["draws"].to_pylist() == [2, 1]


def test_out_that_cannot_be_a_file(make_dataset, tmp_path) -> None:
    dataset = make_dataset([5, 1], images=False)
    with pytest.raises(UsageError, match=r"--out: expected a file, found the folder"):
        balance(dataset, Options(), tmp_path)
    with pytest.raises(UsageError, match=r"GL0001.*--out: no such folder: .*missing"):
        balance(dataset, Options(), tmp_path / "missing" / "s.parquet")
    assert not (tmp_path / "missing").exists()
