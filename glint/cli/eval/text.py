"""The words of `glint eval`: tables of rates and ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glint.results import models as results

Rows = tuple[str, tuple[str, ...], list[tuple[str, ...]]]  # title, heads, rows


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.3f}"


def folds(sets: list[results.PairSet]) -> Rows:
    """Return the table of a page: a row for each verification set."""
    heads = ("set", "pairs", "accuracy", "deviation", "threshold, cosine")
    return (
        "Ten folds",
        heads,
        [
            (one.set, str(one.pairs), f"{100 * one.accuracy:.2f} %",
             f"{100 * one.std:.2f} %", f"{1 - one.threshold / 2:.4f}")
            for one in sets
        ],
    )  # fmt: skip


def ranks(many: dict[str, Any] | None) -> list[Rows]:
    """Return the table of one to many: a row for the field's definition, a row for each gallery."""
    if many is None:
        return []
    field = many["field"]
    alarms = field["recall_at_false_alarms"]
    made = [("both galleries, recall at false alarms per probe", field["rank"], alarms)]
    for name, one in many["galleries"].items():
        made.append((f"gallery {name}, TPIR at FPIR", one["rank"], one["tpir_at_fpir"]))
    rows = [
        (words, *(_share((rank or {}).get(k)) for k in ("1", "5", "10")),
         *(_share(at.get(far)) for far in ("1e-3", "1e-2", "1e-1")))
        for words, rank, at in made
    ]  # fmt: skip
    heads = ("1:N, %", "rank 1", "rank 5", "rank 10", "1e-3", "1e-2", "1e-1")
    return [("One to many", heads, rows)]


def pairs(result: results.EvalPairs | results.EvalSets) -> str:
    """Return a row for each verification set."""
    lines = [f"{'set':20s} {'pairs':>7s} {'accuracy %':>16s} {'TAR@FAR 1e-3':>13s} {'1e-4':>7s}"]
    for found in getattr(result, "sets", [result]):
        tar = [found.tar_at_far[far] for far in ("1e-3", "1e-4")]
        three, four = ("-" if value is None else f"{100 * value:.2f}" for value in tar)
        lines.append(
            f"{found.set[:20]:20s} {found.pairs:7d} {100 * found.accuracy:8.2f} "
            f"+- {100 * found.std:4.2f} {three:>13s} {four:>7s}"
        )
    flipped = "mirrored image added" if result.flip else "no mirrored image"
    lines.append(f"{result.model} through {result.engine}, {result.dim} numbers, {flipped}")
    return "\n".join(lines)


def rates(result: dict[str, Any]) -> str:
    """Return a row for each FAR, and the numbers of pairs."""
    lines = [f"{'FAR':>6s} {'TAR %':>9s} {'threshold':>10s}"]
    for far, tar in result["tar_at_far"].items():
        cut = result["threshold_at_far"][far]
        near = result.get("tar_at_most", result["tar_at_far"])[far]
        more = "" if tar == near else f"  at most {_share(near)}"
        lines.append(
            f"{far:>6s} {_share(tar):>9s} {'-' if cut is None else f'{cut:.6f}':>10s}{more}"
        )
    lines.append(
        f"{result['genuine']:,} pairs of the same person, "
        f"{result['impostors']:,} of different people"
    )
    if result.get("pairs_per_second"):
        lines.append(f"{result['pairs_per_second']:.3g} pairs/s in a pass")
    return "\n".join(lines)


def all_pairs(result: results.EvalAllPairs) -> str:
    """Return a row for each FAR, and the numbers of pairs."""
    return rates(vars(result))


def ijb(result: results.EvalIjb) -> str:
    """Return the table of 1:1 and that of 1:N."""
    lines = [rates(result.one_to_one)]
    for _, heads, rows in ranks(result.one_to_many):
        for words, *cells in (heads, *rows):
            lines.append(f"{words:50s}" + "".join(f" {cell:>8s}" for cell in cells))
    return "\n".join(lines)


def identify(result: results.EvalIdentify) -> str:
    """Return rank 1 by the number of distractors, and TAR at FAR."""
    lines = [f"{'distractors':>12s} {'rank 1 %':>9s}"]
    lines += [f"{k:>12s} {_share(v):>9s}" for k, v in result.rank1_by_distractors.items()]
    lines += [f"TAR at FAR {far}: {_share(tar)} %" for far, tar in result.tar_at_far.items()]
    return "\n".join(lines)
