"""The schema of a training run: `train/*.toml`, and `recipe.toml` in a run's folder."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from glint.nn.heads.options import OPTIONS, Gemm, Kernels, Kind, Rule, Storage, keys
from glint.nn.names import NAMES, ONNX, TIMM
from glint.recipes.load import Table

Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
Scalar = bool | int | float | str
Option = bool | int | float | str | list[Scalar]


class Data(Table):
    """What is read. `batch` is images per rank per step; the last short batch is dropped."""

    path: Text
    batch: AtLeastOne = 64
    workers: Count = 0
    threads: Count = 0  # decode threads per worker; 0 = one
    flip: bool = True
    augment: Literal["none", "insightface", "lowlight"] = "none"
    decode: Literal["cpu", "gpu"] = "cpu"  # gpu: nvJPEG through torchvision; workers must be 0
    verify: bool = True
    sampling: str = ""  # a sampling.parquet; "auto" = the dataset's own if present
    block: Count = 0  # samples per shuffle block, read sequentially; 0 = one by one, anywhere
    held_out: str = ""  # a text file of labels, one a line: identities that are not trained on

    def mistakes(self) -> Iterator[tuple[str, str]]:
        """Yield what decoding on the GPU excludes."""
        if self.decode == "gpu" and self.workers:
            yield "workers", 'must be 0 with decode = "gpu"; use threads'
        if self.decode == "gpu" and self.augment != "none":
            yield "augment", 'must be "none" with decode = "gpu"'


class Backbone(Table):
    """The network: a name of `glint.nn.backbones` and its own options."""

    name: Text
    embedding: AtLeastOne = 512
    options: dict[str, Option] = Field(default_factory=dict)
    pretrained: str = ""  # a file of weights that a trunk of timm starts from

    def mistakes(self) -> Iterator[tuple[str, str]]:
        """Yield a name that no net has. What timm has is known where timm is, when it is built."""
        if not self.name.startswith(TIMM) and self.name not in (*NAMES, ONNX):
            near = difflib.get_close_matches(self.name, NAMES, 1)
            yield (
                "name",
                f"no net is called {self.name!r}"
                + (f", did you mean {near[0]!r}?" if near else ".")
                + f" There are {', '.join(NAMES)}, and {TIMM}MODEL",
            )
        if self.pretrained and not self.name.startswith(TIMM):
            yield "pretrained", f"only read with {TIMM}MODEL; run.finetune starts from a checkpoint"
        if "pretrained" in self.options:
            yield "options", "backbone.pretrained = FILE is the key; no weights are fetched"


def _declared(key: str, **bounds: Any) -> Any:
    """Take over default and bounds of a key from the head, which declares it."""
    option = OPTIONS[key]
    bounds = bounds or option.metadata["bounds"]
    return Field(option.default, description=option.metadata["help"], **bounds)


_OF_SOME_KINDS = {"init", "near", "lr_scale", *OPTIONS}  # keys that not every kind of head reads


class Head(Table):
    """The classifier over identities: its margin, and what its kind reads.

    `rate` is the share of centres that play per step, positives always included: one, or stages
    [epoch at which it begins, share]. The other kinds have no table of centres but `slots` of
    features (docs/heads.md).
    """

    kind: Kind = "partial_fc"
    margin: Literal["cosface", "arcface", "adaface", "combined"]
    m: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.4  # arcface: 0.5
    m1: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    m2: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    m3: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    straight_through: bool = False  # arcface: a derivative of 1, as in insightface since 2022
    scale: float = _declared("scale")
    rate: Fraction | list[list[float]] = 1.0
    hard: float = _declared("hard")  # by `near`
    near: str = ""  # the folder of a conflict report: `glint dedup-conflicts find`
    rule: Rule = _declared("rule")
    lr_scale: NotNegative = 1.0  # 0: centres stay as they are
    init: str = ""  # a folder of embeddings (`glint embed`) whose centres the head starts from
    threshold: float = _declared("threshold")
    masks: bool = True  # keep known same-person pairs of the label table apart
    block: int = _declared("block")
    gemm: Gemm = _declared("gemm")
    storage: Storage = _declared("storage")
    kernels: Kernels = _declared("kernels")
    slots: int = _declared("slots", ge=0)  # 0: not given
    gallery: int = _declared("gallery")

    @model_validator(mode="before")
    @classmethod
    def _own_margin(cls, data: Any) -> Any:
        """ArcFace's margin is an angle: its default is another."""
        arcface = isinstance(data, dict) and data.get("margin") == "arcface"
        return {"m": 0.5, **data} if arcface else data

    @property
    def stages(self) -> list[list[float]]:
        """Return the epochs at which a rate begins, each with it."""
        return self.rate if isinstance(self.rate, list) else [[0.0, self.rate]]

    def rate_at(self, epoch: float) -> float:
        """Return the share of centres that plays then; epoch: with its fraction."""
        return [rate for begin, rate in self.stages if begin <= epoch][-1]

    def options(self) -> dict[str, Any]:
        """Return values by key as the head's options are: of several rates the largest."""
        return {**self.model_dump(), "rate": max(rate for _, rate in self.stages)}

    def mistakes(self) -> Iterator[tuple[str, str]]:
        """Yield what the chosen kind of head or of margin does not read."""
        if any(len(one) != 2 or not 0 <= one[1] <= 1 for one in self.stages):
            yield "rate", f"expected stages [epoch, share from 0 to 1], found {self.rate}"
            return
        begins = [begin for begin, _ in self.stages]
        if begins[:1] != [0] or begins != sorted({*begins}):
            yield "rate", f"stages must begin at epoch 0 and rise, found {begins}"
            return
        table = self.kind == "partial_fc"
        read = keys(self.kind) | ({"init", "near", "lr_scale"} if table else set())
        for name in type(self).model_fields:
            if name not in _OF_SOME_KINDS or name in read:
                continue
            if getattr(self, name) != type(self).model_fields[name].default:
                yield name, f'not read with kind = "{self.kind}"'
        if table and bool(self.hard) != bool(self.near):
            yield "hard", "head.hard and head.near are given together, or neither"
        elif table and self.hard and not any(0 < rate < 1 for _, rate in self.stages):
            yield "hard", f"only read with a rate between 0 and 1, found {self.rate}"
        if not table and not self.slots:
            yield "slots", f'kind = "{self.kind}" needs at least 1'
        if self.straight_through and self.margin != "arcface":
            yield "straight_through", 'only read with margin = "arcface"'
        combined = {"m1", "m2", "m3"} & self.model_fields_set
        if self.margin != "combined":
            for name in sorted(combined):
                default = type(self).model_fields[name].default
                if getattr(self, name) != default:
                    yield name, f'only read with margin = "combined"; {self.margin} reads m'
        elif not combined:
            yield "margin", '"combined" needs at least one of m1, m2, m3'
        elif "m" in self.model_fields_set and self.m != type(self).model_fields["m"].default:
            yield "m", 'not read with margin = "combined", which has m1, m2, m3'


class Optim(Table):
    """The optimiser of the backbone, and of the centres at lr * head.lr_scale.

    `lr` is the peak rate of the whole batch (ranks * batch * accumulate): nothing rescales it.
    """

    kind: Literal["sgd", "adamw"] = "sgd"
    lr: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # adamw: beta1
    weight_decay: NotNegative = 5e-4
    nesterov: bool = False
    clip: NotNegative = 5.0  # largest gradient norm; 0 = no clipping
    no_decay: bool = False  # spare biases, norms and position embeddings the weight decay

    def mistakes(self) -> Iterator[tuple[str, str]]:
        """Yield options the chosen optimiser cannot use."""
        if self.nesterov and self.kind != "sgd":
            yield "nesterov", f'only for kind = "sgd", found kind = "{self.kind}"'
        elif self.nesterov and self.momentum == 0:
            yield "nesterov", "needs momentum > 0"


class Teacher(Table):
    """A frozen net that the trained one imitates besides: distillation (docs/distill.md).

    `model` is what `glint eval pairs --model` takes, or a .pt or .safetensors file of published
    weights of the net `backbone`.
    """

    model: Text
    backbone: str = ""
    weight: Positive = 7.0  # of its loss beside the margin's; VarGFaceNet's alpha
    loss: Literal["chord", "angular"] = "chord"

    @property
    def bare(self) -> bool:
        """Whether the file holds weights alone and does not name its net."""
        return self.model.endswith((".pt", ".pth", ".safetensors"))

    def mistakes(self) -> Iterator[tuple[str, str]]:
        """Yield a file of weights without the name of its net, and the other way round."""
        if self.bare and not self.backbone:
            yield "backbone", f"names the net that {self.model} holds the weights of, as in r50"
        if self.backbone and not self.bare:
            yield "backbone", "only read with a model that is a .pt, .pth or .safetensors file"


class Tune(Table):
    """What moves of a net that starts from weights, and when the run ends early (docs/tune.md)."""

    freeze: Count = 0  # stages that stay as they are, from the image on
    lora: Count = 0  # rank of the factors that learn in place of the net's weights; 0 = none
    alpha: Positive = 16.0  # factors count alpha / rank times
    norms: Literal["frozen", "moving"] = "frozen"  # running statistics of batch norm
    patience: Count = 0  # verifications without a better one that end the run; 0 = none do

    def mistakes(self) -> Iterator[tuple[str, str]]:
        """Yield an option that turns nothing."""
        if not self.lora and self.alpha != type(self).model_fields["alpha"].default:
            yield "alpha", "only read with lora"


class Schedule(Table):
    """The learning rate over the run. `epochs`, `warmup` and `milestones` count epochs."""

    kind: Literal["poly", "cosine", "step", "constant"] = "poly"
    epochs: AtLeastOne
    warmup: NotNegative = 0.0
    power: Positive = 1.0
    milestones: list[NotNegative] = Field(default_factory=list)
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    max_steps: Count = 0  # stop after so many steps; 0 = all

    def mistakes(self) -> Iterator[tuple[str, str]]:
        """Yield times that do not fit the length of the run or the kind of schedule."""
        if self.warmup >= self.epochs:
            yield "warmup", f"must end before the run does: {self.warmup} of {self.epochs} epochs"
        if self.kind == "step" and not self.milestones:
            yield "milestones", 'kind = "step" needs at least one epoch at which the rate falls'
        if self.kind != "step" and self.milestones:
            yield "milestones", f'only read with kind = "step", found kind = "{self.kind}"'
        if self.milestones != sorted(set(self.milestones)):
            yield "milestones", f"must rise, found {self.milestones}"
        late = [epoch for epoch in self.milestones if epoch >= self.epochs]
        if late:
            yield "milestones", f"must lie inside the run of {self.epochs} epochs, found {late}"


class Run(Table):
    """How the run is carried out: device, precision, logging, checkpoints, evaluation."""

    seed: Count = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bf16", "fp16", "float64"] = "float32"
    accumulate: AtLeastOne = 1
    threads: Count = 0  # torch threads per rank; 0 = cores / local ranks
    log_every: AtLeastOne = 10
    save_every: AtLeastOne = 500  # steps
    save_epochs: bool = True  # and at the end of each epoch
    save_minutes: NotNegative = 0.0  # and so long after the last save; 0 = not by time
    keep: AtLeastOne = 2
    async_save: bool = True  # write checkpoints beside the steps, from a copy in memory
    eval_every: Count = 0  # steps; 0 = at the end of each epoch
    val: list[Text] = Field(default_factory=list)  # verification .bin files
    # beside log.jsonl: tensorboard, wandb, mlflow, module:Class
    loggers: list[Text] = Field(default_factory=lambda: ["tensorboard"])
    tensorboard: bool = True  # false: not even where loggers has it
    channels_last: bool = False
    finetune: str = ""  # a checkpoint whose weights the run starts from
    finetune_head: bool = False  # and from its centres; their momentum starts anew
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0  # decay of a moving average of the weights
    sync_bn: bool = False  # batch norm over all ranks' images
    compile: str = ""  # a backend of torch.compile, as in "inductor"; "" = none
    on_nan: Literal["stop", "skip"] = "stop"  # what a loss or gradient that is not finite does
    max_skips: AtLeastOne = 20  # more skipped steps in a row end the run
    # nonsense to go on with
    allow: list[Literal["one-identity", "image-labels", "one-large", "pairs", "zero-loss"]] = Field(
        default_factory=list
    )
    timeout: Positive = 120.0  # seconds a rank waits for the others before it gives up

    def mistakes(self) -> Iterator[tuple[str, str]]:
        """Yield what the device does not have."""
        if self.device == "cpu" and self.precision == "fp16":
            yield "precision", 'fp16 needs device = "cuda"; on cpu use float32 or bf16'
        if self.finetune_head and not self.finetune:
            yield "finetune_head", "only read with finetune"
        if self.device == "cpu" and self.sync_bn:
            yield "sync_bn", 'needs device = "cuda": torch has it for GPUs only'


class Recipe(Table):
    """A whole training run."""

    data: Data
    backbone: Backbone
    head: Head
    optim: Optim
    schedule: Schedule
    teacher: Teacher | None = None
    tune: Tune | None = None
    run: Run = Field(default_factory=Run)

    def paths(self) -> Iterator[tuple[str, str]]:
        """Yield (key, path) of every file or folder that a run reads."""
        yield "data.path", self.data.path
        if self.backbone.pretrained:
            yield "backbone.pretrained", self.backbone.pretrained
        if self.data.sampling not in ("", "auto"):
            yield "data.sampling", self.data.sampling
        if self.data.held_out:
            yield "data.held_out", self.data.held_out
        if self.head.near:
            yield "head.near", self.head.near
        if self.head.init:
            yield "head.init", self.head.init
        if self.teacher is not None:
            yield "teacher.model", self.teacher.model
        if self.run.finetune:
            yield "run.finetune", self.run.finetune
        yield from (("run.val", path) for path in self.run.val)

    def mistakes(self) -> Iterator[tuple[str, str]]:
        """Yield a head that does not go with the optimiser, the precision or the batch."""
        if (self.head.rule == "adamw") != (self.optim.kind == "adamw"):
            momentum_free = self.head.rule == "none"
            if not momentum_free:
                yield (
                    "head.rule",
                    (
                        f'"{self.head.rule}" does not go with optim.kind = '
                        f'"{self.optim.kind}"; "none" goes with both'
                    ),
                )
        yield from self._tuning()
        late = [begin for begin, _ in self.head.stages if begin >= self.schedule.epochs]
        if late:
            yield (
                "head.rate",
                f"stages must begin before epoch {self.schedule.epochs}, found {late}",
            )
        if self.data.decode == "gpu" and self.run.device == "cpu":
            yield "data.decode", '"gpu" needs a GPU, found run.device = "cpu"'
        if self.run.precision == "float64" and "bf16" in (self.head.gemm, self.head.storage):
            yield "head", 'gemm and storage must be "float32" with run.precision = "float64"'
        if self.head.kind != "partial_fc" and not self.run.ema:
            yield (
                "run.ema",
                f'head.kind = "{self.head.kind}" compares with the moving average of the net; '
                "0.99 or 0.999",
            )
        if self.head.kind != "partial_fc" and self.run.finetune_head:
            yield "run.finetune_head", f'not read with head.kind = "{self.head.kind}"'
        if self.head.kind == "class_pool" and self.data.batch % 6:
            yield "data.batch", 'head.kind = "class_pool" needs a multiple of 6'
        if self.head.kind == "class_queue":
            group = 1 + self.head.gallery
            if self.data.batch % group:
                yield (
                    "data.batch",
                    f'head.kind = "class_queue" with gallery = {self.head.gallery} needs a '
                    f"multiple of {group}",
                )
            if self.data.block:
                yield "data.block", 'not read with head.kind = "class_queue"'

    def _tuning(self) -> Iterator[tuple[str, str]]:
        """Yield what a run that starts from nothing cannot keep, and centres from two places."""
        if self.head.init and self.run.finetune_head:
            yield "head.init", "not read with run.finetune_head, which has centres"
        if self.tune is None:
            return
        if not self.run.finetune and (self.tune.norms == "frozen" or self.tune.freeze):
            yield "tune", "keeps what run.finetune does not give: freeze = 0 and norms = moving"
        if self.tune.patience and not self.run.val:
            yield "tune.patience", "needs packs to verify on: run.val"
