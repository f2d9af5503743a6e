"""Hugging Face accelerate with glint's stream and head. Needs `pip install 'glint-faces[loops]'`.

    torchrun --nproc_per_node 2 examples/accelerate_loop.py DATASET --steps 20

Its losses are those of train/plain_loop.py, to the bit on two CPU ranks.
"""

from __future__ import annotations

import argparse
import json

import torch
from accelerate import Accelerator

from glint import CosFace, Dataset, PartialFC, PartialFCOptions, Stream, create_backbone, to_input


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=1, help="length of the learning rate's ramp")
    parser.add_argument("--batch", type=int, default=32, help="images per rank")
    args = parser.parse_args()
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)  # stream and head come after it: they take its ranks

    stream = Stream(Dataset(args.dataset), batch=args.batch)
    torch.manual_seed(0)
    net = create_backbone("iresnet", 64, layers=(1, 1, 1, 1), widths=(8, 16, 32, 64))
    head = PartialFC(
        stream.labels.classes,
        64,
        PartialFCOptions(rate=0.5),
        margin=CosFace(0.4),
        masks=stream.labels.masks,
    ).to(accelerator.device)
    sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    total = args.epochs * len(stream)
    plain = [sgd, head.optimizer(lr=0.1)]
    # not prepared: accelerate would step a schedule once for each process
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda s: 1 - s / total) for o in plain]
    model, loader, *optimizers = accelerator.prepare(net, stream.loader(num_workers=2), *plain)

    losses: list[float] = []
    while len(losses) < min(args.steps, total):
        for batch in loader:  # as the stream cut it; nothing is moved to a device
            image = batch.image.to(accelerator.device)
            loss = head(model(to_input(image, flip=batch.flip)), batch.label)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 5.0)  # never those of the centres
            for optimizer, schedule in zip(optimizers, schedules):
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            losses.append(loss.item())
            if len(losses) == args.steps:
                break
    if accelerator.is_main_process:
        print(json.dumps({"losses": losses}))
    accelerator.end_training()


if __name__ == "__main__":
    main()
