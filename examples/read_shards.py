"""Only the reader: images and labels of a dataset that `glint shard` made, in torch's DataLoader.

    python examples/read_shards.py DATASET

Labels are those in force; images that a label version leaves out have -1. For training take
`glint.Stream`: it shuffles better, is much faster and knows where it stands.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from torch.utils.data import DataLoader, Subset

from glint import Dataset


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    dataset = Dataset(args.dataset)
    kept = Subset(dataset, np.flatnonzero(dataset.target >= 0).tolist())
    images, total = 0, 0
    for image_nHW3, label_n in DataLoader(kept, args.batch, num_workers=args.workers):
        images += len(label_n)
        total += int(image_nHW3.sum())
    classes = len(np.unique(dataset.target[dataset.target >= 0]))
    print(json.dumps({"images": images, "classes": classes, "sum": total}))


if __name__ == "__main__":
    main()
