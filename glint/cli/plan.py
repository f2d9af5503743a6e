"""`glint plan`: what a head of so many classes costs on each rank, before anything is bought."""

from __future__ import annotations

from typing import Any

import typer

from glint.cli import console as show
from glint.nn.heads.options import OPTIONS


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan")(plan)


def _option(key: str, default: Any = None) -> Any:
    """Make an option of the command as the head declares it."""
    option = OPTIONS[key]
    return typer.Option(
        option.default if default is None else default, f"--{key}", help=option.metadata["help"]
    )


def plan(
    classes: int = typer.Option(..., "--classes", help="Identities."),
    dim: int = typer.Option(512, "--dim", help="Length of an embedding."),
    world: int = typer.Option(1, "--world", help="Ranks (GPUs)."),
    batch: int = typer.Option(128, "--batch", help="Images per rank and step."),
    rate: float = _option("rate", 0.1),
    rule: str = _option("rule"),
    storage: str = _option("storage"),
    gemm: str = _option("gemm"),
    block: int = _option("block"),
    kind: str = typer.Option("partial_fc", "--kind", help="As head.kind in a recipe."),
    slots: int = _option("slots"),
    gallery: int = _option("gallery"),
    card: float = typer.Option(0.0, "--card", help="GB per rank that the head may use."),
    tflops: float = typer.Option(0.1, "--tflops", help="TFLOP/s of a rank's matrix products."),
    gbps: float = typer.Option(8.0, "--gbps", help="GB/s at which a rank reads and writes rows."),
    link: float = typer.Option(10.0, "--link", help="GB/s at which a rank receives messages."),
    as_json: bool = show.JSON,
    debug: bool = show.DEBUG,
) -> None:
    """Estimate memory, messages and step time of a head on each rank."""

    def work() -> dict[str, Any]:
        from glint.train import memory

        values = {"rate": rate, "rule": rule, "storage": storage, "gemm": gemm, "block": block}
        values |= {"kind": kind, "slots": slots, "gallery": gallery}
        return memory.plan(
            values,
            classes,
            dim=dim,
            world=world,
            batch=batch,
            card=card,
            tflops=tflops,
            gbps=gbps,
            link=link,
        )

    show.run(work, "glint/plan-result@1", as_json, debug=debug, say=_say)


def _say(found: dict[str, Any]) -> str:
    need, head, took = found["memory"], found["head"], found["seconds"]
    lines = [
        f"{head['classes']} classes x {head['dim']} on {head['world']} ranks: "
        f"{found['rows']} rows a rank, {found['playing']} play a step"
    ]
    lines += [f"  {name:<13} {value / 1e9:10.3f} GB" for name, value in need.items()]
    lines.append(f"  dense momentum SGD over autograd: {found['reference_memory'] / 1e9:.3f} GB")
    lines.append(
        f"  messages {found['communication']['received'] / 1e6:.3f} MB a step in "
        f"{found['communication']['collectives']} collectives"
    )
    lines.append(
        f"  step about {1000 * took['total']:.1f} ms: products "
        f"{1000 * took['products']:.1f}, rows {1000 * took['rows']:.1f}, messages "
        f"{1000 * took['messages']:.1f}"
    )
    if "card" in found:
        unit = "slots" if head["slots"] else "classes"
        verdict = "fits" if found["fits"] else "does not fit"
        lines.append(f"  {found['card']:g} GB a rank: {verdict}; at most {found['largest']} {unit}")
    return "\n".join(lines)
