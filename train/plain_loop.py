"""Partial FC training in one readable program: no recipe, no CLI, glint's public parts only.

    torchrun --nproc_per_node 2 train/plain_loop.py DATASET --steps 20

`glint train` on the matching recipe gives the same losses and weights, to the bit on CPU: a test
runs both. Read this to know what glint does; read glint/train to see how it is made safe.
"""

from __future__ import annotations

import argparse
import hashlib
import json

import torch

from glint.dist.ddp import data_parallel
from glint.dist.world import join, leave
from glint.nn import backbones
from glint.nn.heads.options import PartialFCOptions
from glint.nn.heads.partial_fc import PartialFC
from glint.nn.margins import margin
from glint.shards import labels
from glint.shards.dataset import Dataset
from glint.stream.augment import to_input
from glint.stream.loader import Stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=1, help="length of the learning rate's ramp")
    parser.add_argument("--batch", type=int, default=32, help="images per rank")
    parser.add_argument("--embedding", type=int, default=64)
    parser.add_argument("--widths", type=int, nargs=4, default=[8, 16, 32, 64])
    parser.add_argument("--rate", type=float, default=0.5, help="share of classes per step")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.set_num_threads(1)
    world = join("cpu")

    # Data: every rank its own part of one global order.
    dataset = Dataset(args.dataset)
    table = labels.current(dataset.root, dataset.classes)
    stream = Stream(
        dataset, labels=table, rank=world.rank, world=world.size, batch=args.batch, seed=args.seed
    )

    # Backbone: the same initial weights on every rank, averaged gradients through DDP.
    torch.manual_seed(args.seed)
    backbone = backbones.create(
        "iresnet", embedding=args.embedding, layers=(1, 1, 1, 1), widths=tuple(args.widths)
    )
    model = data_parallel(backbone, world)

    # Head: each rank owns a range of the classes and samples negatives from it.
    head = PartialFC(
        table.classes,
        args.embedding,
        PartialFCOptions(scale=64.0, rate=args.rate, rule="none", weight_decay=5e-4),
        margin=margin("cosface", m=0.4),
        masks=table.masks,
        world=world,
        seed=args.seed,
    )
    weights = [p for p in backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=args.lr, momentum=0.9, weight_decay=5e-4)

    total = args.epochs * stream.steps_per_epoch
    losses: list[float] = []
    for epoch in range(args.epochs):
        for batch in stream.batches(epoch):
            step = len(losses)
            if step == args.steps:
                break
            feature = model(to_input(batch.image, torch.float32, flip=batch.flip))
            leaf = feature.detach().requires_grad_()
            loss = head(leaf, batch.label, step=step)
            loss.backward()  # gradients of the features and of this rank's sampled centres
            feature.backward(leaf.grad)  # gradients of the backbone, averaged by DDP
            torch.nn.utils.clip_grad_norm_(backbone.parameters(), 5.0)
            lr = args.lr * (1.0 - step / total)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            head.update(step=step, lr=lr)
            losses.append(loss.item())

    if world.rank == 0:
        digest = hashlib.sha256()
        for name, tensor in sorted(backbone.state_dict().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        print(json.dumps({"losses": losses, "weights": digest.hexdigest()}))
    leave(world)


if __name__ == "__main__":
    main()
