"""Damaged and invented packs end in a named error or in pairs, never in anything else."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from glint.errors import GlintError
from glint.evals.packs import read_bin

IMAGES = [bytes([255, 216, i]) * 9 for i in range(4)]
ARRAYS = [np.frombuffer(image, np.uint8) for image in IMAGES]
SEEDS = [
    pickle.dumps((images, [True, False]), protocol)
    for images in (IMAGES, ARRAYS)
    for protocol in range(6)
]
# the codes a pickle is made of, so that invented ones get past the first byte
CODES = st.sampled_from(
    [bytes([code]) for code in b"]()}.NtlaepbRcq\x80\x85\x86\x87\x88\x89K\x94\x93"]
)


def outcome(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.bin"
        path.write_bytes(content)
        try:
            pairs = read_bin(path)
        except GlintError as error:
            assert error.code in ("GL0801", "GL0802")
            assert error.where == str(path)
        else:
            assert len(pairs.images) == 2 * len(pairs.same) > 0
            assert all(isinstance(image, bytes) for image in pairs.images)


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=5)), min_size=1, max_size=4),
)
def test_mutated_packs(seed: bytes, edits: list[tuple[float, bytes]]) -> None:
    content = bytearray(seed)
    for share, replacement in edits:
        at = int(share * (len(content) - 1))
        content[at : at + len(replacement)] = replacement
    outcome(bytes(content))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.one_of(CODES, st.binary(max_size=3)), max_size=40))
def test_invented_packs(parts: list[bytes]) -> None:
    outcome(b"".join(parts) + b".")
