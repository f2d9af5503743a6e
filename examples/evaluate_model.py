"""Only the evaluation: a verification pack (lfw.bin and its like) and any model of yours.

python examples/evaluate_model.py lfw.bin                   the toy model below
python examples/evaluate_model.py lfw.bin --model NET.onnx  a file, or a run of glint train
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from glint import load_recogniser, read_bin, verify


def toy(image_nHWC: np.ndarray) -> np.ndarray:
    """Embed uint8 RGB crops (n, 112, 112, 3) as (n, D) floats: put your model here."""
    small = image_nHWC.reshape(len(image_nHWC), 8, 14, 8, 14, 3).mean((2, 4))
    return small.reshape(len(image_nHWC), -1) - 127.5


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pack")
    parser.add_argument("--model")
    args = parser.parse_args()
    model = load_recogniser(args.model) if args.model else toy
    found = verify(model, read_bin(args.pack))
    print(json.dumps({"accuracy": found.accuracy, "std": found.std, "tar": found.tar_at_far}))


if __name__ == "__main__":
    main()
