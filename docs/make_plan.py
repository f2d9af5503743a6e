"""Write the table of docs/plan.md by the command's own arithmetic."""

from __future__ import annotations

from pathlib import Path

from glint.pipelines.cost import Dataset, Machines, duration, plan

PAGE = Path(__file__).with_name("plan.md")
BEGIN, END = "<!-- table -->\n", "<!-- end -->\n"
SETS = {  # images, identities, machines
    "Glint360K": (17_091_657, 360_232, 1),
    "WebFace42M": (42_474_557, 2_059_906, 4),
    "WebFace260M": (260_890_076, 4_008_130, 16),
    "10^9": (10**9, 10**7, 64),
}
CORES = 64


def table() -> str:
    """Return the table."""
    plans = {
        name: (plan(Dataset(n, c), Machines(machines, CORES)),
               plan(Dataset(n, n, unlabelled=True), Machines(machines, CORES)))
        for name, (n, c, machines) in SETS.items()
    }  # fmt: skip
    lines = [
        f"Time and memory of a machine by stage, on machines of {CORES} cores and 256 GB, D = 512, "
        "6 kB an image:",
        "",
        "| stage | " + " | ".join(
            f"{name}: {n:,} images, {c:,} identities, {m} machine{'s' * (m > 1)}"
            for name, (n, c, m) in SETS.items()
        ) + " |",
        "|---|" + "---|" * len(SETS),
    ]  # fmt: skip
    rows: dict[str, list[str]] = {}
    for labelled, unlabelled in plans.values():
        single = [one for one in unlabelled.stages if one.name == "cluster graph"]
        for one in [*labelled.stages, *single]:
            name = f"{one.name} (unlabelled)" if one in single else one.name
            name += "" if one.name in _shared(plans["10^9"][0]) else ", one machine"
            said = f"{duration(one.seconds)}, {one.memory / 1e9:,.1f} GB"
            rows.setdefault(name, []).append(said)
        moved = sum(one.read + one.written for one in labelled.stages)
        rows.setdefault("all but the graph, one after the other", []).append(
            f"{duration(labelled.seconds)}; CPU {duration(labelled.cpu_seconds)}")  # fmt: skip
        rows.setdefault("read and written", []).append(f"{moved / 1e12:,.1f} TB")
        rows.setdefault("first wall", []).append(labelled.wall)
        rows.setdefault("first wall, unlabelled", []).append(unlabelled.wall)
    last = ("all but", "read and", "first wall")
    ordered = sorted(rows, key=lambda name: name.startswith(last))
    lines += [f"| {name} | " + " | ".join(rows[name]) + " |" for name in ordered]
    return "\n".join(lines) + "\n"


def _shared(found: object) -> set[str]:
    return {one.name for one in found.stages if one.machines > 1}  # type: ignore[attr-defined]


def page() -> str:
    """Return docs/plan.md with the table of today."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
