"""Lightning Fabric with glint's stream and head. Needs `pip install 'glint-faces[loops]'`.

    torchrun --nproc_per_node 2 examples/fabric_loop.py DATASET --steps 20

Its losses are those of train/plain_loop.py, to the bit on two CPU ranks.
"""

from __future__ import annotations

import argparse
import json
import os

import torch
from lightning_fabric import Fabric

from glint import CosFace, Dataset, PartialFC, PartialFCOptions, Stream, create_backbone, to_input


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=1, help="length of the learning rate's ramp")
    parser.add_argument("--batch", type=int, default=32, help="images per rank")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    fabric = Fabric(accelerator="cpu", devices=ranks, strategy="ddp" if ranks > 1 else "auto")
    fabric.launch()  # stream and head come after it: they take the ranks that it started

    stream = Stream(Dataset(args.dataset), batch=args.batch)
    loader = fabric.setup_dataloaders(stream.loader(num_workers=2))  # left as it is: cut already
    torch.manual_seed(0)
    net = create_backbone("iresnet", 64, layers=(1, 1, 1, 1), widths=(8, 16, 32, 64))
    head = PartialFC(
        stream.labels.classes,
        64,
        PartialFCOptions(rate=0.5),
        margin=CosFace(0.4),
        masks=stream.labels.masks,
    ).to(fabric.device)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    total = args.epochs * len(stream)
    plain = [sgd, head.optimizer(lr=0.1)]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda s: 1 - s / total) for o in plain]
    model = fabric.setup_module(net)  # the head stays outside: DDP has nothing to do for it
    optimizers = fabric.setup_optimizers(*plain)

    losses: list[float] = []
    while len(losses) < min(args.steps, total):
        for batch in loader:
            loss = head(model(to_input(batch.image, flip=batch.flip)), batch.label)
            fabric.backward(loss)
            fabric.clip_gradients(model, optimizers[0], max_norm=5.0)
            for optimizer, schedule in zip(optimizers, schedules):
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            losses.append(loss.item())
            if len(losses) == args.steps:
                break
    if fabric.global_rank == 0:
        print(json.dumps({"losses": losses}))


if __name__ == "__main__":
    main()
