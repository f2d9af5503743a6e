"""What a run leaves to look at: log.jsonl, TensorBoard, and where the time went."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glint.log import logger
from glint.shards.commit import write_bytes

if TYPE_CHECKING:
    from glint.evals.pairs import Verification
    from glint.stream.loader import Batch
    from glint.train.build import Run


def cut(path: Path, start: int) -> None:
    """Keep the entries of a log up to step `start`, none at 0; a torn last line goes too."""
    if not path.exists():
        return
    kept, whole = [], path.read_bytes()
    for line in whole.splitlines(keepends=True):
        try:
            if line.endswith(b"\n") and start and int(json.loads(line)["step"]) <= start:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    if b"".join(kept) != whole:
        write_bytes(path, b"".join(kept))


class Log:
    """Writes on rank 0 only; a failing logger never ends a run."""

    def __init__(self, run: Run, start: int = 0) -> None:
        """Go on with the log of a run that goes on at step `start`: what is done again is cut."""
        self.run = run
        self.speed = ""
        self._spent: dict[str, float] = defaultdict(float)
        self._at = self._since = time.perf_counter()
        self._steps = 0
        self._file = self._board = None
        if run.world.rank == 0:
            run.out.mkdir(parents=True, exist_ok=True)
            cut(run.out / "log.jsonl", start)
            self._file = (run.out / "log.jsonl").open("a", buffering=1)
            if run.recipe.run.tensorboard:
                try:
                    from torch.utils.tensorboard import SummaryWriter

                    self._board = SummaryWriter(str(run.out / "tensorboard"))
                except ImportError:
                    logger.info("tensorboard is not installed: log.jsonl only")

    def mark(self, part: str) -> None:
        """Put the time since the last mark down to `part`."""
        now = time.perf_counter()
        self._spent[part] += now - self._at
        self._at = now

    def step(self, step: int, epoch: int, lr: float, loss: float) -> None:
        """Count a step; every `log_every` of them, write one line."""
        self._steps += 1
        every = self.run.recipe.run.log_every
        now = time.perf_counter()
        images = self._steps * self.run.global_batch * self.run.recipe.run.accumulate
        rate = images / max(1e-9, now - self._since)
        self.speed = f"{rate:.0f} img/s"
        if (step + 1) % every == 0 or self._steps == 1 == step + 1:
            spent = sum(self._spent.values()) or 1.0
            self._write(
                "step",
                {
                    "step": step + 1,
                    "epoch": epoch,
                    "loss": loss if math.isfinite(loss) else None,
                    "lr": lr,
                    "images_per_s": round(rate, 2),
                    "time": {k: round(v / spent, 4) for k, v in self._spent.items()},
                    **self.run.head.statistics(),
                },
            )
            self._spent.clear()
            self._steps, self._since = 0, now
        self._at = time.perf_counter()

    def verification(self, step: int, epoch: float, results: dict[str, Verification]) -> None:
        """Write the accuracies of one evaluation."""
        for name, v in results.items():
            self._write(
                "verification",
                {
                    "step": step,
                    "epoch": round(epoch, 4),
                    "set": name,
                    "accuracy": v.accuracy,
                    "std": v.std,
                },
            )
        self._at = self._since = time.perf_counter()
        self._steps = 0

    def saved(self, step: int, size: int, waited: float, paused: float) -> None:
        """Write what a checkpoint of `size` bytes here cost the steps, in seconds.

        waited: for the save before it; paused: for the copy, or the writing where none is made.
        """
        entry = {"step": step, "bytes": size, "waited_s": waited, "paused_s": paused}
        self._write("save", {k: round(v, 4) for k, v in entry.items()})

    def dump(self, step: int, batches: list[Batch], loss: float) -> str:
        """Name the samples of a bad step in RUN/diverged-*.json and give that path."""
        run = self.run
        path = run.out / f"diverged-{step:08d}-rank{run.world.rank}.json"
        run.out.mkdir(parents=True, exist_ok=True)
        rows = [int(r) for batch in batches for r in batch.row]
        keys = [run.dataset.key[r] for r in rows]
        path.write_text(json.dumps({"step": step, "loss": str(loss), "rows": rows, "keys": keys}))
        return str(path)

    def close(self) -> None:
        """Flush and close."""
        if self._board is not None:
            self._board.close()
        if self._file is not None:
            self._file.close()

    def _write(self, kind: str, entry: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps({"kind": kind, **entry}) + "\n")
            if self._board is not None:
                prefix = f"{kind}/{entry['set']}" if "set" in entry else kind
                for key, value in entry.items():
                    if isinstance(value, int | float) and key not in ("step", "epoch"):
                        self._board.add_scalar(f"{prefix}/{key}", value, entry["step"])
        except OSError as error:
            logger.warning("the log could not be written: %s", error)
