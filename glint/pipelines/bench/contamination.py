"""Which people and images of a test stand in a training set, by the search across datasets."""

# n images of the test, N of the training set, P people of the test, D embedding

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from glint.conflicts import verdicts
from glint.conflicts.evidence import Samples
from glint.conflicts.verdicts import ConflictOptions
from glint.errors import MismatchError
from glint.evals.packs import Pairs
from glint.evals.sets import Part
from glint.log import Progress, silent
from glint.pipelines.conflicts.overlap import shared
from glint.search.pairs import usable
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.shards.embeddings import centres, load


class TrainedOn:
    """A training set with its embeddings, searched within once for what chance makes alike.

    digests: of the models of the bench; the embeddings must be of one. Raises MismatchError GL0402.
    """

    def __init__(
        self, root: Path, embeddings: Path, digests: list[str], *, progress: Progress = silent
    ) -> None:
        self.dataset = Dataset(root)
        emb = load(
            embeddings, self.dataset.digest, images=self.dataset.n, classes=self.dataset.classes
        )
        self.model = str(emb.about.get("model"))
        if self.model not in digests:
            raise MismatchError(
                "GL0402", f"made with model {emb.about.get('name')} ({self.model[:12]}), which is "
                "none of those named", where=str(embeddings),
                hint="name that model, too, or embed the training set with one that is named",
            )  # fmt: skip
        now = labels.current(self.dataset.root, self.dataset.classes)
        self.emb = emb.under(now, self.dataset.label)
        self.person_N = now.sample_person(self.dataset.label)
        self.samples = Samples(self.emb.sample_ND, self.person_N, self.dataset.classes)
        self.options = ConflictOptions()
        self.found = verdicts.find(
            self.emb.centre_CD, self.samples, now.target, self.options, progress=progress
        )
        self.held: dict[str, dict[str, Any]] = {}

    def known(
        self, part: Part, pairs: Pairs, x_nD: np.ndarray, person_n: np.ndarray
    ) -> dict[str, Any]:
        """Say of each image whether the training set has it, or its person.

        The first call for a test must be with the embeddings of `self.model`; later ones, of other
        models, get the same answer. Images: the same bytes. People: those of such images, and
        those that the judge of conflicts would merge with a person of the training set.
        """
        name = f"{part.path} {part.name}"
        if name in self.held:
            return self.held[name]
        byte_nk = np.frombuffer(
            b"".join(xxhash.xxh3_128_digest(image) for image in pairs.images), np.uint8
        ).reshape(-1, 16)
        rows = shared(self.dataset.digests, byte_nk)
        rows = rows[self.person_N[rows[:, 0]] >= 0]
        image_n = np.zeros(len(person_n), bool)
        image_n[rows[:, 1]] = True
        count = int(person_n.max()) + 1
        x_nD = np.where(usable(x_nD)[:, None], x_nD, 1.0)
        unit_nD = (x_nD / np.linalg.norm(x_nD, axis=1, keepdims=True)).astype(np.float32)
        both = np.stack([self.person_N[rows[:, 0]], person_n[rows[:, 1]]], axis=1)
        target_C = np.where(np.bincount(self.person_N[self.person_N >= 0],
                                        minlength=self.dataset.classes) > 0,
                            np.arange(self.dataset.classes), -1)  # fmt: skip
        judged = verdicts.across(
            self.found, self.emb.centre_CD, self.samples, target_C,
            centres(unit_nD, person_n, count), Samples(unit_nD, person_n, count), np.arange(count),
            self.options, also=np.unique(both, axis=0).astype(np.int64).reshape(-1, 2),
        )  # fmt: skip
        merged = judged.verdict == "merge"
        in_P = np.zeros(count, bool)
        in_P[judged.pairs.b[merged]] = True
        in_P[person_n[image_n]] = True
        matches = np.unique(np.stack([judged.pairs.b[merged], judged.pairs.a[merged]], 1), axis=0)
        self.held[name] = {
            "dataset": self.dataset.name,
            "people": in_P[person_n],
            "images": image_n,
            "people_of_test": count,
            "people_found": int(in_P.sum()),
            "images_of_test": len(person_n),
            "images_found": int(image_n.sum()),
            "matches": [(int(p), int(c)) for p, c in matches],
            "note": judged.judge.note,
        }
        return self.held[name]
