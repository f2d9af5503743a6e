"""People made of coarse colours, and a model that sees nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from glint.models.recogniser import Recogniser


class People:
    """Pictures of people: a person is 48 numbers, a picture adds noise."""

    def picture(self, person: int, number: int, noise: float = 18.0) -> bytes:
        own = np.random.default_rng([5, person]).normal(0, 45, (4, 4, 3))
        seen = own + np.random.default_rng([6, person, number]).normal(0, noise, (4, 4, 3))
        cells = (127.5 + seen).clip(0, 255).astype(np.uint8)
        image = np.ascontiguousarray(cells.repeat(28, 0).repeat(28, 1))
        return bytes(simplejpeg.encode_jpeg(image, quality=95))

    def write(self, path: Path, person: int, number: int, noise: float = 18.0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.picture(person, number, noise))

    def lfw(self, root: Path, people: range, text: str = "pairs.txt", images: str = "") -> None:
        """Lay out LFW: PERSON/PERSON_0001.jpg, and two folds of pairs in its list."""
        for person in people:
            for number in (1, 2):
                self.write(
                    root / images / f"P{person}" / f"P{person}_{number:04d}.jpg", person, number
                )
        lines = ["2\t" + str(len(people) // 2)]
        half = len(people) // 2
        for own in (people[:half], people[half:]):
            lines += [f"P{p}\t1\t2" for p in own]
            lines += [f"P{p}\t1\tP{q}\t2" for p, q in zip(own, [*own[1:], own[0]])]
        (root / text).parent.mkdir(parents=True, exist_ok=True)
        (root / text).write_text("\n".join(lines) + "\n")


def seen(image_nHWC: np.ndarray) -> np.ndarray:
    part = image_nHWC.reshape(len(image_nHWC), 4, 28, 4, 28, 3).mean((2, 4))
    return (part.reshape(len(part), -1) - 127.5).astype(np.float32)


@pytest.fixture(scope="session")
def folk() -> People:
    return People()


@pytest.fixture(scope="session")
def model() -> Recogniser:
    digest = hashlib.sha256(b"colours").hexdigest()
    return Recogniser("colours", 48, 112, digest, "toy", 0.0, 1.0, seen, 0)
