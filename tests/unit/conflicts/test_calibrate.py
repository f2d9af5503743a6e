"""The fitted scale follows the draws it is fitted on."""

from __future__ import annotations

import numpy as np
import pytest

from glint.conflicts import calibrate
from glint.conflicts.evidence import Samples


def test_the_fit_finds_location_and_spread() -> None:
    rng = np.random.default_rng(0)
    x = rng.choice([0.1, 0.5, 1.0, 2.0], 20000)
    score = 1.0 - 0.05 * x + np.sqrt(0.001 + 0.01 * x) * rng.standard_normal(20000)
    for upper in (False, True):
        got = calibrate.fit(x, score, upper=upper)
        np.testing.assert_allclose(got.location(np.array([0.1, 2])), [0.995, 0.9], atol=0.02)
        np.testing.assert_allclose(
            got.spread(np.array([0.1, 2])), np.sqrt([0.002, 0.021]), rtol=0.15
        )


def test_a_heavy_tail_widens_the_spread() -> None:
    rng = np.random.default_rng(1)
    x = np.full(5000, 0.5)
    normal = rng.standard_normal(5000)
    heavy = rng.standard_t(2, 5000)
    narrow = calibrate.fit(x, normal, upper=True).spread(x)[0]
    wide = calibrate.fit(x, heavy, upper=True).spread(x)[0]
    assert narrow == pytest.approx(1, rel=0.15)
    assert wide > 1.5 * narrow


def test_too_few_identities_to_calibrate() -> None:
    x = np.random.default_rng(2).standard_normal((50, 8))
    calibration = calibrate.calibrate(Samples(x, np.arange(50), 50))
    assert calibration.about()["genuine"] is None
    assert len(calibration.genuine.x_S) == 0
    assert not calibration.calibrated


def test_draws_lie_where_one_person_and_two_do() -> None:
    rng = np.random.default_rng(3)
    middle = rng.standard_normal((200, 32))
    label = np.repeat(np.arange(200), 6)
    x = middle[label] + 0.6 * rng.standard_normal((1200, 32))
    calibration = calibrate.calibrate(Samples(x, label, 200))
    assert calibration.calibrated
    assert np.median(calibration.genuine.score_S) == pytest.approx(1, abs=0.05)
    assert abs(np.median(calibration.impostor.score_S)) < 0.1
    again = calibrate.calibrate(Samples(x, label, 200))
    assert again.about() == calibration.about()
