"""A backbone under FSDP2 (`fully_shard`) with glint's stream and head, and one checkpoint of both.

    torchrun --nproc_per_node 2 examples/fsdp2_loop.py DATASET --steps 20 --state FOLDER

The checkpoint is torch.distributed.checkpoint's: it loads on any number of ranks. Losses are those
of train/plain_loop.py to 1e-6 in its first three steps, and nearer than 1e-4 after
six: sums are made in another order.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

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

    stream = Stream(Dataset(args.dataset), batch=args.batch)
    torch.manual_seed(0)
    net = create_backbone("iresnet", 64, layers=(1, 1, 1, 1), widths=(8, 16, 32, 64))
    fully_shard(net, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    head = PartialFC(
        stream.labels.classes,
        64,
        PartialFCOptions(rate=0.5),
        margin=CosFace(0.4),
        masks=stream.labels.masks,
    )
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    optimizers = [sgd, head.optimizer(lr=0.1)]
    total = args.epochs * len(stream)
    parts = {"head": head.sharded(), "stream": stream}
    if args.state and args.state.exists():
        parts["net"], parts["sgd"] = get_state_dict(net, sgd)
        dcp.load(parts, checkpoint_id=args.state)
        set_state_dict(net, sgd, model_state_dict=parts["net"], optim_state_dict=parts["sgd"])

    losses: list[float] = []
    while head.steps < min(args.steps, total):
        for batch in stream:
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = 0.1 * (1 - head.steps / total)
            loss = head(net(to_input(batch.image, flip=batch.flip)), batch.label)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
            if head.steps == args.steps:
                break
    if args.state:
        parts["net"], parts["sgd"] = get_state_dict(net, sgd)
        dcp.save(parts, checkpoint_id=args.state)
    if dist.get_rank() == 0:
        print(json.dumps({"losses": losses}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
