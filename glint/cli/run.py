"""`glint run`: a dataset's road, one command after the other, from where it stopped."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from glint.cli import complete, console

if TYPE_CHECKING:
    from glint.results import models as results

STEPS, PAGE = "steps.json", "summary.html"
FORMAT = "glint/road@1"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("run")(run)


def run(
    recipe: str = typer.Argument(
        ...,
        metavar="RECIPE",
        autocompletion=complete.pipeline_recipes,
        help="A recipe of pipelines/: its name, or a file.",
    ),
    out: Path | None = typer.Option(
        None, "--out", "-o", help="Folder for the summary and what was done; default: run-RECIPE."
    ),
    change: list[str] = console.SET,
    as_json: bool = console.JSON,
    debug: bool = console.DEBUG,
) -> None:
    """Run every stage of a pipeline recipe; the same command goes on where it stopped."""

    def work() -> results.Road:
        from glint.files import atomic
        from glint.pipelines import recipe as pipelines
        from glint.recipes import load, shelf

        entry = shelf.locate(recipe, "pipelines")
        road = pipelines.commands(load.load(entry.path, pipelines.Recipe, change))
        folder = out or Path(f"run-{entry.path.stem}")
        atomic.own_dir(folder)
        with atomic.lock(folder / "lock"):
            return walk(folder, road)

    console.run(work, as_json, debug=debug, say=_say)


def walk(folder: Path, road: list[list[str]]) -> results.Road:
    """Run the commands that are not done; write steps.json after each, and the page.

    A command is done where this folder says that the very same one ended, all before it are, and
    what it read and made is still there: the files it names by SHA-256, folders by name, and the
    labels in force. The first runs each time: it looks at its source, and where it made other data
    all run again. Raises SystemExit with the exit code of a command that fails.
    """
    from glint.files import atomic
    from glint.results import models as results

    path = folder / STEPS
    held: list[dict[str, Any]] = []
    if path.is_file():
        found = atomic.read_json(path, "GL0006")
        held = found["steps"] if found.get("format") == FORMAT else []
    last = held[-1].get("labels") if held else None
    now = _labels(road[0])  # other than the last: somebody else changed them since
    steps: list[dict[str, Any]] = []
    fresh = False  # whether a command before this one did something
    for number, command in enumerate(road):
        known = held[number] if number < len(held) else {}
        same = known.get("command") == command and not fresh
        if same and number > 0:
            before, after = held[number - 1].get("labels"), known.get("labels")
            stale = last != now and (before == after == last or before == now != after)
            if not stale and known.get("read") == _read(command, known["result"]):
                console.tell(f"done before: {shlex.join(command)}")
                steps.append(known)
                continue
        began = time.monotonic()
        result = command_result(command)
        done = {
            "command": command,
            "result": result,
            "seconds": round(time.monotonic() - began, 1),
            "read": _read(command, result),
            "labels": _labels(road[0]),
        }
        looked = number == 0 and same and known["result"].get("digest") == result.get("digest")
        fresh = not looked
        steps.append(known if looked else done)
        later = held[number + 1 :] if looked else []
        atomic.write_json(path, {"format": FORMAT, "steps": steps + later})
        _write_page(folder, steps, road)
    _write_page(folder, steps, road)
    return results.Road(
        steps=[
            results.RoadStep(command=shlex.join(one["command"]), seconds=one["seconds"])
            for one in steps
        ],
        accuracy=[
            one["result"]["accuracy"] for one in steps if one["command"][1:3] == ["eval", "pairs"]
        ],
        page=str(folder / PAGE),
        out=str(folder),
    )


def _read(command: list[str], result: dict[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of each file that a command names, and what a model's folder lists."""
    from glint.files import atomic

    found: dict[str, str] = {}
    for before, word in zip(command[1:], [*command[2:], str(result.get("sampling"))]):
        path = Path(word)
        if path.is_file():
            found[word] = atomic.sha256_of(path)
        elif path.is_dir():
            files = sorted(one for one in path.rglob("*") if one.is_file())
            listed = [(str(one), one.stat().st_size, one.stat().st_mtime_ns) for one in files]
            found[word] = repr(listed) if before == "--model" else "folder"
    return found


def _labels(first: list[str]) -> str | None:
    """Return the digest of the labels in force of the dataset that the first command makes."""
    from glint.shards import labels
    from glint.shards.dataset import Dataset

    if len(first) < 4 or not (Path(first[3]) / "manifest.json").is_file():
        return None
    dataset = Dataset(first[3])
    return labels.current(dataset.root, dataset.classes).digest


def command_result(command: list[str]) -> dict[str, Any]:
    """Run a command of glint; return its JSON. Raises SystemExit with its exit code."""
    console.tell(f"\n$ {shlex.join(command)}")
    done = subprocess.run(
        [sys.executable, "-m", "glint", *command[1:], "--json"], stdout=subprocess.PIPE, check=False
    )
    if done.returncode:
        console.tell(f"stopped: exit code {done.returncode} of {shlex.join(command)}")
        console.tell("mend what it says, then run the same `glint run` again: it goes on here")
        raise SystemExit(done.returncode)
    result: dict[str, Any] = json.loads(done.stdout)
    console.tell(f"  {_short(result)}")
    return result


def _short(result: dict[str, Any]) -> str:
    shown = {
        name: f"{value:.4g}" if isinstance(value, float) else value
        for name, value in result.items()
        if not isinstance(value, dict | list)
        and not str(value).startswith(("None", "glint/", "sha256:"))
    }
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())


def _write_page(folder: Path, steps: list[dict[str, Any]], road: list[list[str]]) -> None:
    from glint.review import plots

    rows = [
        [shlex.join(one["command"]), f"{one['seconds']:.1f} s: {_short(one['result'])}"]
        for one in steps
    ]
    rows += [[shlex.join(command), "not yet"] for command in road[len(steps) :]]
    spent = sum(one["seconds"] for one in steps)
    counts = [
        (f"{100 * one['result']['accuracy']:.2f} %", f"accuracy on {Path(one['command'][3]).stem}")
        for one in steps
        if one["command"][1:3] == ["eval", "pairs"]
    ]
    counts += [(f"{len(steps)} of {len(road)}", "stages done"), (f"{spent:.0f} s", "spent")]
    plots.write(
        folder / PAGE,
        plots.Plots(
            f"Road: {folder.name}", counts, [("folder", str(folder))],
            tables=[plots.Table("Stages", ["command", "took, and gave"], rows)],
        ),
    )  # fmt: skip


def _say(r: results.Road) -> str:
    lines = [f"{len(r.steps)} stages done, {sum(one.seconds for one in r.steps):.0f} s"]
    lines += [f"accuracy     {100 * value:.2f} %" for value in r.accuracy]
    return "\n".join([*lines, f"open         {r.page}"])
