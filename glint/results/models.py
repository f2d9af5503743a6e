"""Answers about models, recipes and the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

Rates = dict[str, float | None]  # by false accept rate, as "1e-4"; null where too few pairs


@dataclass(frozen=True, kw_only=True)
class Train:
    SCHEMA: ClassVar[str] = "glint/train-result@1"  # a finished run
    steps: int
    loss: float | None  # of the last step; null where none was left to do
    accuracy: float | None  # mean of the verification sets; null without any
    verification: dict[str, float]  # accuracy by set
    checkpoint: str
    out: str
    resumed_from: int  # step
    images: int
    classes: int
    world: int  # ranks


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    SCHEMA: ClassVar[str] = "glint/train-plan@1"  # `glint train --dry-run`: what a rank would hold
    backbone: str
    parameters: int
    trained: int
    macs: int  # multiply-adds of an image
    classes: int
    world: int  # ranks
    batch: int  # images per rank and step
    global_batch: int
    memory: dict[str, int]  # bytes by part, and in total
    checkpoint: int  # bytes that the first rank saves


@dataclass(frozen=True, kw_only=True)
class Plan:
    SCHEMA: ClassVar[str] = "glint/plan-result@1"  # the cost of a head on a rank
    head: dict[str, Any]  # the options
    rows: int  # of the fullest rank
    playing: int  # rows that take part in a step
    memory: dict[str, int]  # bytes by part, and in total
    reference_memory: int  # bytes of dense momentum SGD over autograd
    communication: dict[str, int]  # bytes received per step; collectives
    flop: float  # of a step's matrix products
    seconds: dict[str, float]  # of a step by part, and in total
    card: float | None = None  # with --card: GB
    fits: bool | None = None  # with --card
    largest: int | None = None  # with --card: most classes, or slots, that fit


@dataclass(frozen=True, kw_only=True)
class Launch:
    SCHEMA: ClassVar[str] = "glint/launch-result@1"  # a job for many machines
    kind: str
    ranks: int
    job: str  # text


@dataclass(frozen=True, kw_only=True)
class Report:
    SCHEMA: ClassVar[str] = "glint/report-result@1"  # the page of a run
    page: str


@dataclass(frozen=True, kw_only=True)
class Export:
    SCHEMA: ClassVar[str] = "glint/export@1"  # a net as ONNX
    onnx: str
    bytes: int
    sha256: str
    opset: int
    dim: int
    backbone: str
    cosine_min: float  # least agreement with torch
    crops: int  # compared
    insightface: bool  # whether insightface loaded it
    checkpoint: str


@dataclass(frozen=True, kw_only=True)
class Weights:  # a file of weights
    name: str
    sha256: str
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Import:
    SCHEMA: ClassVar[str] = "glint/import@1"  # published weights as a checkpoint
    checkpoint: str
    name: str  # the backbone
    embedding: int
    options: dict[str, Any]
    parameters: int
    tensors: int
    source: Weights


@dataclass(frozen=True, kw_only=True)
class PairSet:  # a verification set
    set: str
    accuracy: float  # mean of the folds
    std: float  # of the folds
    folds: list[float]
    tar_at_far: Rates
    threshold: float  # squared distance, mean over the folds
    val: float | None  # TAR at FAR 1e-3 of the other folds
    val_std: float | None
    val_far: float | None  # the FAR met
    cosine_same: float | None
    cosine_different: float | None
    pairs: int
    same: int


@dataclass(frozen=True, kw_only=True)
class EvalPairs(PairSet):
    SCHEMA: ClassVar[str] = "glint/eval@1"  # one verification set
    model: str
    model_digest: str
    engine: str
    dim: int
    flip: bool


@dataclass(frozen=True, kw_only=True)
class EvalSets:
    SCHEMA: ClassVar[str] = "glint/eval@1"  # several verification sets
    accuracy: float  # mean
    sets: list[PairSet]
    model: str
    model_digest: str
    engine: str
    dim: int
    flip: bool


@dataclass(frozen=True, kw_only=True)
class EvalAllPairs:
    SCHEMA: ClassVar[str] = "glint/eval-all-pairs@1"  # every pair of a dataset
    rows: int  # images
    dropped: int  # without embedding or identity
    identities: int
    genuine: int  # pairs of one person
    impostors: int  # pairs of different people
    tar_at_far: Rates
    tar_at_most: Rates  # at the lower edge of an inexact threshold
    threshold_at_far: Rates
    exact: dict[str, bool]
    histogram: dict[str, list[int]]  # of cosines
    roc: list[tuple[float, float]]  # FAR, TAR
    pairs_per_second: float | None
    dataset: str
    dataset_digest: str
    label_version: int
    model: str | None
    model_digest: str | None


@dataclass(frozen=True, kw_only=True)
class EvalIjb:
    SCHEMA: ClassVar[str] = "glint/eval-ijb@1"  # the protocols of IJB-B and IJB-C
    one_to_one: dict[str, Any]  # genuine, impostors, tar_at_far, .. as for all pairs
    one_to_many: dict[str, Any] | None  # field, galleries; null without lists of probes
    images: int
    templates: int
    media: int
    detector_score: bool  # whether images were weighed
    embeddings: str | None = None  # the .npy
    dataset: str | None = None  # the five of the dataset, with --dataset
    dataset_digest: str | None = None
    label_version: int | None = None
    model: str | None = None
    model_digest: str | None = None
    failed: int | None = None  # images without an embedding


@dataclass(frozen=True, kw_only=True)
class EvalIdentify:
    SCHEMA: ClassVar[str] = "glint/eval-identify@1"  # probes among distractors
    probes: int
    identities: int
    pairs: int
    distractors: int
    dropped: int  # images without an embedding
    rank1_by_distractors: dict[str, float]
    tar_at_far: Rates
    seed: int
    dataset: str
    dataset_digest: str
    label_version: int
    model: str | None
    model_digest: str | None
    distractor_dataset: str


@dataclass(frozen=True, kw_only=True)
class Recipe:  # a recipe of a shelf
    shelf: str
    name: str
    title: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Ls:
    SCHEMA: ClassVar[str] = "glint/ls-result@1"  # the recipes
    recipes: list[Recipe]


@dataclass(frozen=True, kw_only=True)
class Cp:
    SCHEMA: ClassVar[str] = "glint/cp-result@1"  # a copied recipe
    path: str


@dataclass(frozen=True, kw_only=True)
class Cat:
    SCHEMA: ClassVar[str] = "glint/cat-result@1"  # a recipe
    shelf: str
    name: str
    path: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Validate:
    SCHEMA: ClassVar[str] = "glint/validate-result@1"  # a recipe without mistakes
    path: str
    shelf: str
    valid: bool  # true
    commands: list[str]  # to run next
    recipe: dict[str, Any]  # with all defaults


@dataclass(frozen=True, kw_only=True)
class Dependency:  # a package
    name: str
    version: str  # "" = not installed
    works: bool
    note: str


@dataclass(frozen=True, kw_only=True)
class Doctor:
    SCHEMA: ClassVar[str] = "glint/doctor-result@1"  # the machine and what is installed
    glint: str
    python: str
    system: str
    cores: int
    ram: dict[str, int]  # bytes: total, available
    disk: dict[str, Any]  # path, free bytes
    parts: list[Dependency]
    problems: list[str]


@dataclass(frozen=True, kw_only=True)
class Synth:
    SCHEMA: ClassVar[str] = "glint/synth-result@1"  # a synthetic world
    out: str
    identities: int  # labels
    persons: int
    images: int
    flipped: int  # images under a wrong label
    damaged: int
    pairs: int  # of pairs.bin


@dataclass(frozen=True, kw_only=True)
class Demo:
    SCHEMA: ClassVar[str] = "glint/demo-result@1"  # the whole road, as in summary.json
    images_in: int
    images_written: int
    images_quarantined: int
    quarantine_reasons: dict[str, int]
    identities: int
    identities_after_merge: int
    conflicts_planted: int
    conflicts_found: int
    conflicts_wrong: int
    lookalikes_planted: int
    lookalikes_merged: int
    pairs_masked: int
    epoch_samples: int
    accuracy_untrained: float
    accuracy_first: float
    accuracy_final: float
    accuracy_final_std: float
    tar_at_far: Rates
    embedded: int
    onnx_cosine_min: float
    ranks: int
    seconds: dict[str, float]
    seconds_total: float
    paths: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Error:
    SCHEMA: ClassVar[str] = "glint/error@1"  # any command that fails; docs/errors.md
    error: str  # code
    slug: str
    what: str
    where: str
    hint: str
    exit: int
