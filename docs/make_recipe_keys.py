"""Write docs/recipe_keys.md: keys, types, bounds, defaults from the models, meanings from here."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from glint.manifests.card import Card
from glint.pipelines import recipe as pipelines
from glint.recipes.load import Table
from glint.train import recipe as train

HEAD = """\
# The keys of recipes

For people who write or change a recipe. Keys, defaults and bounds are made from the models that
read the files, by `make docs`; a test compares the two. [Recipes](recipes.md) says how recipes are
found, copied, checked and changed.

A key without a default must be given. "command's" means that the default is that of the
[command](cli.md) the table stands for.
"""
SECTIONS = (
    ("train/: a training run", train.Recipe, "`glint train` reads it. `[teacher]`, `[tune]` and "
     "`[run]` may be left out."),
    ("pipelines/: from download to training", pipelines.Recipe, "`glint run` does its "
     "stages, a table each, in this order. A stage that is left out is not done."),
    ("manifests/: what a dataset is", Card, "`glint cat` prints it; nothing is downloaded."),
)  # fmt: skip

# key: unit, meaning
SAID: dict[str, tuple[str, str]] = {
    "data.path": ("", "the dataset: a folder or a URL"),
    "data.batch": ("images", "per rank and step; a short last batch is dropped"),
    "data.workers": ("processes", "that load, per rank; 0 loads in the training process"),
    "data.threads": ("threads", "that decode, per worker; 0 is one"),
    "data.flip": ("", "mirror images at random"),
    "data.augment": ("", "degrade some images, see [The stream](stream.md)"),
    "data.decode": ("", "`gpu` decodes with nvJPEG through torchvision; then `workers` is 0"),
    "data.verify": ("", "check every image against its checksum"),
    "data.sampling": ("", "a `sampling.parquet`; `auto` takes the dataset's own if there is one"),
    "data.block": ("samples", "read in one piece and shuffled inside it; 0 shuffles one by one"),
    "data.held_out": ("", "a text file of labels, one a line, that are not trained on"),
    "backbone.name": ("", "the net, see [Backbones](backbones.md)"),
    "backbone.embedding": ("numbers", "length of an embedding"),
    "backbone.options": ("", "the net's own options, as in `layers = [1, 1, 1, 1]`"),
    "backbone.pretrained": ("", "a file of weights that a trunk of timm starts from"),
    "head.kind": ("", "the classifier; the other two keep no table of centres ([Heads](heads.md))"),
    "head.margin": ("", "`combined` reads `m1`, `m2`, `m3`; the others read `m`"),
    "head.m": ("cosine or radians", "the margin; for `arcface`, an angle, the default is 0.5"),
    "head.m1": ("", "`combined`: factor of the angle"),
    "head.m2": ("radians", "`combined`: added to the angle"),
    "head.m3": ("cosine", "`combined`: taken from the cosine"),
    "head.straight_through": ("", "`arcface`: a derivative of 1, as in insightface since 2022"),
    "head.scale": ("", "what cosines are multiplied by"),
    "head.rate": (
        "share",
        "of centres that take part in a step; or stages `[[0, 0.1], [18, 1.0]]`",
    ),
    "head.hard": ("share", "of negatives taken from the neighbours of the batch's classes"),
    "head.near": ("", "the conflict report that names those neighbours"),
    "head.rule": ("", "how centres are updated ([Partial FC](partial_fc.md))"),
    "head.lr_scale": ("", "learning rate of the centres over that of the net; 0 freezes them"),
    "head.init": ("", "embeddings from whose class means the centres start"),
    "head.threshold": ("cosine", "negatives above it are left out; 0 leaves none out"),
    "head.masks": ("", "leave known pairs of one person out of the loss"),
    "head.block": ("classes", "per block of the softmax; 8192 suits a GPU"),
    "head.gemm": ("", "what the operands of matrix products are rounded to"),
    "head.storage": ("", "how centres and their momentum are kept"),
    "head.kernels": ("", "who computes the head: torch or triton"),
    "head.slots": ("rows", "`class_pool`: identities held; `class_queue`: class rows"),
    "head.gallery": ("images", "`class_queue`: that make one class row; 2 is AttFC"),
    "optim.kind": ("", "the optimiser"),
    "optim.lr": ("", "peak learning rate of the whole batch: ranks x batch x accumulate"),
    "optim.momentum": ("", "of SGD; beta1 of AdamW"),
    "optim.weight_decay": ("", "of net and centres"),
    "optim.nesterov": ("", "Nesterov's momentum, SGD only"),
    "optim.clip": ("norm", "largest gradient of the net; 0 does not clip"),
    "optim.no_decay": ("", "no weight decay on biases, norms and position embeddings"),
    "schedule.kind": ("", "how the learning rate falls"),
    "schedule.epochs": ("epochs", "length of the run"),
    "schedule.warmup": ("epochs", "over which the rate rises to its peak"),
    "schedule.power": ("", "`poly`: 1 falls in a straight line"),
    "schedule.milestones": ("epochs", "`step`: when the rate falls"),
    "schedule.gamma": ("", "`step`: the factor by which it falls"),
    "schedule.max_steps": (
        "steps",
        "stop early; 0 does not; the rate's curve stays that of `epochs`",
    ),
    "teacher.model": ("", "the net to imitate: a run, ONNX, `.pt` or `.safetensors`"),
    "teacher.backbone": ("", "the net of a `.pt` or `.safetensors` file"),
    "teacher.weight": ("", "of its loss beside the margin's"),
    "teacher.loss": ("", "`chord` is 2 (1 - cos), `angular` is (1 - cos)^2"),
    "tune.freeze": ("stages", "of the net that stay as they are, counted from the image"),
    "tune.lora": ("rank", "of factors that learn in place of the weights; 0 has none"),
    "tune.alpha": ("", "factors count alpha / rank times"),
    "tune.norms": ("", "running statistics of batch norm"),
    "tune.patience": ("verifications", "without a better one that end the run; 0: none do"),
    "run.seed": ("", "of initial values, order and sampling"),
    "run.device": ("", "where it runs"),
    "run.precision": ("", "of the net's arithmetic"),
    "run.accumulate": ("batches", "averaged into one step"),
    "run.threads": ("threads", "of torch per rank; 0 divides the cores among the ranks"),
    "run.log_every": ("steps", "between two lines of the log"),
    "run.save_every": ("steps", "between two checkpoints"),
    "run.save_epochs": ("", "a checkpoint at the end of each epoch, too"),
    "run.save_minutes": ("minutes", "since the last checkpoint until another; 0: not by time"),
    "run.keep": ("checkpoints", "that are kept"),
    "run.async_save": ("", "write checkpoints while training goes on"),
    "run.eval_every": ("steps", "between two verifications; 0: at the end of each epoch"),
    "run.val": ("", "verification packs (`.bin`)"),
    "run.loggers": ("", "beside `log.jsonl`: tensorboard, wandb, mlflow, `module:Class`"),
    "run.tensorboard": ("", "false leaves TensorBoard out, whatever `loggers` has"),
    "run.channels_last": ("", "memory order of the net on a GPU"),
    "run.finetune": ("", "a checkpoint whose weights the run starts from"),
    "run.finetune_head": ("", "start from its centres as well; their momentum starts anew"),
    "run.ema": ("", "decay of a moving average of the weights, kept beside them; 0 keeps none"),
    "run.sync_bn": ("", "batch norm over the images of all ranks (GPUs)"),
    "run.compile": ("", "a backend of torch.compile, as in `inductor`"),
    "run.on_nan": ("", "what a loss or gradient that is not finite does"),
    "run.max_skips": ("steps", "skipped in a row that end the run"),
    "run.allow": ("", "checks to pass over, by the names that errors give ([Training](train.md))"),
    "run.timeout": ("seconds", "a rank waits for the others; 1320 or more with a store"),
    "shard.source": ("", "what is packed: a `.rec`, a folder, tars, tables"),
    "align.source": ("", "photographs"),
    "align.detector": ("", "an ONNX file that finds faces and five points, or a pack's name"),
    "align.faces": ("", "which faces of a photograph"),
    "align.min_face": ("pixels", "shorter side of a face's box, at least"),
    "align.unlabelled": ("", "nobody said who is who: every face gets a label of its own"),
    "embed.model": ("", "an ONNX recogniser, or a run"),
    "quality.method": ("", "how quality is measured ([Image quality](quality.md))"),
    "quality.model": ("", "the net that measures it"),
    "quality.least": ("", "for `[balance]`: a number, or a share as in `5%`"),
    "cluster.method": ("", "a stream (online) or all faces at once (graph); not given: online"),
    "cluster.join": ("cosine", "from which a face joins a cluster"),
    "cluster.connect": ("cosine", "from which two clusters are one person"),
    "cluster.min": ("faces", "of an identity, at least"),
    "conflicts.threshold": (
        "cosine",
        "above which two identities are one; by default it is judged",
    ),
    "conflicts.apply": ("", "apply the verdicts: only where a person has looked at the report"),
    "balance.cap": ("images", "of an identity and epoch, at most"),
    "balance.min": ("images", "of an identity and epoch, at least"),
    "balance.power": ("", "of the count of images; 1 as they are, 0 all identities alike"),
    "train.recipe": ("", "a recipe of `train/`, by name or path"),
    "train.nproc": ("ranks", "on this machine"),
    "train.set": ("", "changes of the recipe, as in `--set`"),
    "eval.pairs": ("", "verification packs"),
    "title": ("", "the dataset's name"),
    "use": ("", "what it is for"),
    "identities": ("people", ""),
    "images": ("images", ""),
    "width": ("pixels", "of an image"),
    "height": ("pixels", "of an image"),
    "format": ("", "how it comes"),
    "files": ("", "what lies there after unpacking"),
    "licence": ("", "its terms"),
    "commercial": ("", "whether they allow commercial use"),
    "ask": ("", "where to ask for it"),
    "source": ("", "who published it"),
    "paper": ("", "which paper describes it"),
    "notes": ("", "what else is known"),
    "md5": ("", "the publishers' checksums, by file"),
}
# keys of several tables of a road
SHARED = {
    "out": ("", "what is written"),
    "samples_per_shard": ("records", "in a shard"),
    "workers": ("processes", "0: one per core"),
    "seed": ("", "of the order of all records"),
}


def page() -> str:
    """Return docs/recipe_keys.md as text. KeyError for a key that nothing is said of."""
    lines = [HEAD]
    for title, model, said in SECTIONS:
        lines += [f"## {title}", "", said, ""]
        tables = [(name, _model(one.annotation)) for name, one in model.model_fields.items()]
        if not any(table for _, table in tables):
            lines += _table("", model)
        for name, table in tables:
            if table:
                doc = (table.__doc__ or "").split("\n\n")[0]
                about = " ".join(doc.replace("`", "``").replace("``", "`").split())
                lines += [f"### `[{name}]`", "", about, "", *_table(name, table)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _model(annotation: Any) -> type[Table] | None:
    for one in (annotation, *get_args(annotation)):
        if isinstance(one, type) and issubclass(one, Table):
            return one
    return None


def _table(name: str, model: type[Table]) -> Iterator[str]:
    yield from ("| key | takes | default | unit | meaning |", "|---|---|---|---|---|")
    for key, field in model.model_fields.items():
        full = f"{name}.{key}" if name else key
        unit, said = SAID[full] if full in SAID else SHARED[key]
        yield f"| `{full}` | {_takes(field)} | {_default(field, model)} | {unit} | {said} |"
    yield ""


def _default(field: FieldInfo, model: type[Table]) -> str:
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none" if model.__module__ == train.__name__ else "command's"
    return f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).replace("'", '"') if not isinstance(value, str) else f'"{value}"'


def _takes(field: FieldInfo) -> str:
    bounds = {
        sign: getattr(one, name)
        for one in field.metadata
        for sign, name in ((">", "gt"), (">=", "ge"), ("<", "lt"), ("<=", "le"))
        if getattr(one, name, None) is not None
    }
    return _kind(field.annotation, bounds)


def _kind(annotation: Any, bounds: dict[str, Any]) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = {
            sign: value
            for one in parts[1:]
            for part in [one, *getattr(one, "metadata", ())]
            for sign, name in ((">", "gt"), (">=", "ge"), ("<", "lt"), ("<=", "le"))
            if (value := getattr(part, name, None)) is not None
        }
        return _kind(parts[0], inner)
    if origin is Literal:
        return ", ".join(f"`{_toml(one)}`" for one in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(one, bounds) for one in parts if one is not type(None))
    if origin is list:
        return f"list of {_kind(parts[0], {})}"
    if origin is dict:
        return "table"
    names = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    limits = " and ".join(f"{sign} {value:g}" for sign, value in bounds.items())
    name = names.get(annotation, str(annotation))
    return f"{name} {limits}".strip() if annotation in (int, float) else name


if __name__ == "__main__":
    Path(__file__).with_name("recipe_keys.md").write_text(page(), encoding="utf-8")
