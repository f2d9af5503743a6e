"""What cannot be learnt from is named before it costs a day."""

# C labels as sharded, T identities in force

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from glint.errors import UsageError
from glint.evals.packs import Pairs, nonsense
from glint.nn import backbones
from glint.nn.backbones.parts import SIZE
from glint.shards.dataset import Dataset
from glint.shards.label_table import LabelTable
from glint.train.recipe import Recipe

LARGE, FEW = 0.9, 20  # share of one identity that is odd, and images below which nothing is


def require_step(recipe: Recipe, world: int = 1) -> None:
    """Raise UsageError GL0002 where the net takes no step on the images of one rank.

    Batch norm has no variance over one image; it is tried on a net without data.
    """
    head = recipe.head
    images = recipe.data.batch // (1 + head.gallery if head.kind == "class_queue" else 1)
    if images > 1 or (recipe.run.sync_bn and world > 1):
        return
    table = recipe.backbone
    with torch.device("meta"):
        net = backbones.create(table.name, table.embedding, **table.options).train()
        try:
            net(torch.empty(images, 3, SIZE, SIZE))
        except ValueError as error:
            raise UsageError(
                "GL0002",
                f"{table.name} has batch norm, and a rank passes {images} image through it a step "
                f"(data.batch = {recipe.data.batch}): {error}",
                where="data.batch",
                hint="--set data.batch=2 or more, or fewer ranks; run.accumulate does not help",
            ) from None


def check(recipe: Recipe, dataset: Dataset, table: LabelTable, packs: Mapping[str, Pairs]) -> None:
    """Raise UsageError GL0002 for labels or pairs that say nothing, unless run.allow names them."""
    for name, what, where in _odd(recipe, dataset, table, packs):
        if name not in recipe.run.allow:
            raise UsageError("GL0002", what, where=where, hint=f"--allow {name} goes on with it")


def _odd(
    recipe: Recipe, dataset: Dataset, table: LabelTable, packs: Mapping[str, Pairs]
) -> list[tuple[str, str, str]]:
    count_C = dataset.identities().column("count").to_numpy()
    kept_C = table.target >= 0
    count_T = np.bincount(table.target[kept_C], count_C[kept_C], table.classes).astype(np.int64)
    n, found, where = int(count_T.sum()), [], f"data.path {recipe.data.path}"
    look = "glint info shows which rule made the labels"
    if (count_T > 0).sum() == 1:
        found.append(("one-identity", f"all {n} images are of one identity; {look}", where))
    elif n > 1 and count_T.max(initial=0) == 1:
        what = f"as many identities as images ({n}): are they numbers of rows? {look}"
        found.append(("image-labels", what, where))
    elif n >= FEW and count_T.max() >= LARGE * n:
        share = 100 * count_T.max() / n
        what = f"{share:.0f} % of {n} images are of one identity; {look}"
        found.append(("one-large", what, where))
    for name, pairs in packs.items():
        if why := nonsense(pairs):
            found.append(("pairs", why, f"run.val {name}"))
    return found


def first_loss(recipe: Recipe, loss: float) -> None:
    """Raise UsageError GL0002 where the first step has nothing to learn.

    A head whose negatives come with the steps has none yet, and a finetuned one may know them all.
    """
    if recipe.head.kind != "partial_fc" or recipe.run.finetune:
        return
    if loss < 1e-7 and not {"zero-loss", "one-identity"} & {*recipe.run.allow}:
        what = f"the loss of the first step is {loss:.3g}: the head tells nobody apart"
        hint = "look at the labels (glint info); --allow zero-loss goes on with it"
        raise UsageError("GL0002", what, where=f"data.path {recipe.data.path}", hint=hint)
