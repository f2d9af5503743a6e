"""Only the pair search: every pair of rows of a .npy file with a cosine of a threshold or more.

python examples/search_numpy.py embeddings.npy --threshold 0.6 --out pairs.npz
"""

from __future__ import annotations

import argparse

import numpy as np

from glint import find_pairs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("embeddings", help="a .npy file, (N, D), rows of any length")
    parser.add_argument("--threshold", type=float, default=0.6)
    parser.add_argument("--out", default="pairs.npz")
    args = parser.parse_args()
    embeddings = np.load(args.embeddings, mmap_mode="r")  # may be larger than memory
    found = find_pairs(embeddings, args.threshold)
    np.savez(args.out, a=found.a, b=found.b, cosine=found.cosine)
    print(f"{len(found.a)} pairs of {len(embeddings)} rows, {found.excluded} without direction")


if __name__ == "__main__":
    main()
