"""The label versions of a dataset, as `glint labels` lists them."""

from __future__ import annotations

from typing import Any

from glint.log import plain
from glint.results import identities as results
from glint.shards import labels
from glint.shards.dataset import Dataset


def listed(dataset: Dataset) -> results.Labels:
    """Describe every label version of a dataset, as sharded first. Raises InputError GL0304."""
    made: list[dict[str, Any]] = [{"version": 0, "from": None, "why": {"stage": "as sharded"}}]
    made += [line for line in labels.history(dataset.root) if line.get("op") == "apply"]
    return results.Labels(
        dataset=str(dataset.root),
        version=labels.unchecked(dataset.root, dataset.classes).version,
        versions=[_described(dataset, line) for line in made],
    )


def _described(dataset: Dataset, line: dict[str, Any]) -> results.LabelVersion:
    table = labels.load(dataset.root, int(line["version"]), dataset.classes)
    why = line.get("why")
    return results.LabelVersion(
        version=table.version,
        made_from=line["from"],
        made_by=plain(str((why if isinstance(why, dict) else {}).get("stage", ""))),
        classes=table.classes,
        dropped=int((table.target < 0).sum()),
        masks=len(table.masks),
        images_left_out=int((table.label < 0).sum()),
        images_moved=int((table.label >= 0).sum()),
    )
