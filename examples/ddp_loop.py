"""Your own DistributedDataParallel loop with glint's stream and head.

    torchrun --nproc_per_node 2 examples/ddp_loop.py DATASET --steps 20

Killed and started again with --state FOLDER, it goes on where it stood. Its losses are those of
train/plain_loop.py, to the bit on two CPU ranks.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

from glint import CosFace, Dataset, PartialFC, PartialFCOptions, Stream, create_backbone, to_input


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=1, help="length of the learning rate's ramp")
    parser.add_argument("--batch", type=int, default=32, help="images per rank")
    parser.add_argument("--state", type=Path, help="a folder to save to, and to go on from")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()

    stream = Stream(Dataset(args.dataset), batch=args.batch)  # this rank's part, by itself
    torch.manual_seed(0)  # the same weights on every rank
    net = create_backbone("iresnet", 64, layers=(1, 1, 1, 1), widths=(8, 16, 32, 64))
    model = DDP(net)
    head = PartialFC(  # split over the ranks, by itself
        stream.labels.classes,
        64,
        PartialFCOptions(rate=0.5),
        margin=CosFace(0.4),
        masks=stream.labels.masks,
    )
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    optimizers = [sgd, head.optimizer(lr=0.1)]
    total = args.epochs * len(stream)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda s: 1 - s / total) for o in optimizers]
    parts = [net, head, *optimizers, *schedules, stream]
    file = args.state / f"rank{rank}.pt" if args.state else None
    if file and file.exists():
        for part, state in zip(parts, torch.load(file, weights_only=True)):
            part.load_state_dict(state)

    losses: list[float] = []
    while head.steps < min(args.steps, total):
        for batch in stream:
            loss = head(model(to_input(batch.image, flip=batch.flip)), batch.label)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            for optimizer, schedule in zip(optimizers, schedules):
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            losses.append(loss.item())
            if head.steps == args.steps:
                break
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save([part.state_dict() for part in parts], file)
    if rank == 0:
        print(json.dumps({"losses": losses}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
