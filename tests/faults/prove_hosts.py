"""Two hosts, made of network namespaces with addresses of their own, train as one (needs root).

    python tests/faults/prove_hosts.py [--out FILE]

Two ranks on each, under torchrun and under glint's own launcher: the losses of four local ranks.
Then one host is cut off in the middle of a run: both sides give up, start again from the newest
checkpoint once the other is back, and end with the losses and weights of the run left alone.
Prints one JSON line a figure and leaves with 1 where one falls short.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prove_ranks import ENV, RECIPE, glint, last_step, whole

HOSTS = ("10.77.0.1", "10.77.0.2")
PORT = 29411


def ip(*words: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def hosts() -> Iterator[list[str]]:
    """Give the names of two namespaces that see each other over a pair of virtual cards."""
    names = [f"glint{os.getpid()}a", f"glint{os.getpid()}b"]
    cards = ["gla", "glb"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", cards[0], "netns", names[0], "type", "veth",
           "peer", "name", cards[1], "netns", names[1])  # fmt: skip
        for name, card, host in zip(names, cards, HOSTS):
            ip("-n", name, "addr", "add", f"{host}/24", "dev", card)
            ip("-n", name, "link", "set", card, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def start(name: str, card: str, args: list[str], said: Path) -> subprocess.Popen[bytes]:
    """Start a command on one of the hosts."""
    env = {**ENV, "GLOO_SOCKET_IFNAME": card, "TP_SOCKET_IFNAME": card}
    with said.open("wb") as file:
        return subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, *args],
            env=env, stdout=subprocess.DEVNULL, stderr=file,
        )  # fmt: skip


def both(names: list[str], commands: list[list[str]], place: Path) -> list[subprocess.Popen[bytes]]:
    """Start a command on each host."""
    return [
        start(name, card, command, place / f"{card}.txt")
        for name, card, command in zip(names, ("gla", "glb"), commands)
    ]


def ended(running: list[subprocess.Popen[bytes]], place: Path, timeout: float) -> None:
    """Wait for both; where one fails, show what it said."""
    deadline = time.monotonic() + timeout
    for process, card in zip(running, ("gla", "glb")):
        code = process.wait(max(1.0, deadline - time.monotonic()))
        if code:
            raise SystemExit(f"{card} left with {code}:\n{(place / f'{card}.txt').read_text()}")


def main() -> int:
    """Make the runs, compare them, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="append the figures")
    args = parser.parse_args()
    if os.geteuid() or shutil.which("ip") is None:
        raise SystemExit("network namespaces need root and the command ip")
    with tempfile.TemporaryDirectory() as temporary, hosts() as names:
        place = Path(temporary)
        glint("synth", place / "world", "--identities", 40, "--images", 6, "--unseen", 20,
              "--pairs", 60, "--conflicts", 3, "--lookalikes", 2)  # fmt: skip
        glint("shard", place / "world", place / "data")
        recipe = place / "recipe.toml"
        steps = 60
        recipe.write_text(RECIPE.format(data=place / "data", steps=steps, every=5))
        train = ["-m", "glint", "train", str(recipe)]
        short = ["--set", "schedule.max_steps=10"]
        glint("train", recipe, "--nproc", 4, "--out", place / "short", *short)
        glint("train", recipe, "--nproc", 4, "--out", place / "long")
        torchrun = [
            ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2",
             "--node-rank", str(node), "--master-addr", HOSTS[0], "--master-port", str(PORT),
             *train, *short, "--out", str(place / "torchrun")]
            for node in range(2)
        ]  # fmt: skip
        ended(both(names, torchrun, place), place, 300)
        own = [
            [*train, "--out", str(place / "cut"), "--nproc", "2", "--nnodes", "2", "--node-rank",
             str(node), "--master", f"{HOSTS[0]}:{PORT + 1}", "--max-restarts", "10",
             "--set", "run.timeout=15"]
            for node in range(2)
        ]  # fmt: skip
        running = both(names, own, place)
        deadline = time.monotonic() + 200
        while last_step(place / "cut") < 20 and time.monotonic() < deadline:
            time.sleep(0.05)
        at = last_step(place / "cut")
        ip("-n", names[1], "link", "set", "glb", "down")
        cut = time.monotonic()
        time.sleep(25)
        stalled = last_step(place / "cut")
        ip("-n", names[1], "link", "set", "glb", "up")
        ended(running, place, 400)
        back = time.monotonic() - cut
        said = "".join((place / f"{card}.txt").read_text() for card in ("gla", "glb"))
        found = {name: whole(place / name) for name in ("short", "torchrun", "long", "cut")}

    def same(a: str, b: str, what: str) -> dict[str, Any]:
        equal = found[a]["steps"] == found[b]["steps"], found[a]["tensors"] == found[b]["tensors"]
        return {"figure": what, "value": f"losses {equal[0]}, tensors {equal[1]}",
                "target": "equal to the bit", "holds": all(equal)}  # fmt: skip

    restarts = said.count("starting again")
    figures = [
        same("short", "torchrun", "hosts: 2 x 2 ranks under torchrun against 4 local ranks"),
        same("long", "cut", "hosts: a host cut off and back, against a run left alone"),
        {"figure": "hosts: steps when cut, after 25 s, and restarts", "value": [at, stalled,
         restarts], "target": "held, then restarted", "holds": at < steps and stalled < steps
         and restarts >= 2},
        {"figure": "hosts: seconds from the cut to the end", "value": round(back, 1),
         "target": None, "holds": None},
    ]  # fmt: skip
    for figure in figures:
        print(json.dumps(figure), flush=True)
        if args.out:
            with args.out.open("a") as file:
                file.write(json.dumps(figure) + "\n")
    return 1 if any(figure["holds"] is False for figure in figures) else 0


if __name__ == "__main__":
    raise SystemExit(main())
