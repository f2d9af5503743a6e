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
    checkpoint: str  # path of the checkpoint
    best: str | None  # path of the checkpoint that verified best; null without any
    out: str  # where it was written
    resumed_from: int  # step
    images: int  # images
    classes: int  # identities after
    world: int  # ranks


@dataclass(frozen=True, kw_only=True)
class TuneSet:  # a pack on which a net was verified before it was tuned, and after
    set: str  # its name
    kind: str  # held-out or generic
    pairs: int  # pairs compared
    before: float  # accuracy, mean of the folds
    after: float  # accuracy, mean of the folds
    worse: bool  # by more than the margin


@dataclass(frozen=True, kw_only=True)
class Tune:
    SCHEMA: ClassVar[str] = "glint/tune-result@1"  # weights tuned on a dataset, or refused
    out: str  # where it was written
    recipe: str  # its path
    start: str  # path of the net before
    learning_rate: float  # at its highest
    steps: int  # done; 0 with --recipe-only
    sets: list[TuneSet]  # each pack
    margin: float  # accuracy that may be lost
    share: float  # of the tuned net in the weights, 1 for it alone
    refused: bool  # whether more was lost
    tuned: str | None  # path of the checkpoint; null where refused or not trained
    warnings: list[str]  # what the figures do not say


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    SCHEMA: ClassVar[str] = "glint/train-plan@1"  # `glint train --dry-run`: what a rank would hold
    backbone: str  # its name
    parameters: int  # of the net
    trained: int  # of them, trained
    macs: int  # multiply-adds of an image
    classes: int  # identities after
    world: int  # ranks
    batch: int  # images per rank and step
    global_batch: int  # images per step
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
    on: str  # what the seconds are of: a GPU by its data sheet, or figures given
    card: float | None = None  # with --card: GB
    fits: bool | None = None  # with --card
    largest: int | None = None  # with --card: most classes, or slots, that fit


@dataclass(frozen=True, kw_only=True)
class DataStage:  # what a stage of a dataset's way would take
    name: str  # its name
    machines: int  # it can be shared out to, of those given
    cores: int  # it uses of each
    seconds: float  # from its start to its end
    cpu_seconds: float  # of all machines together
    alone: float  # CPU seconds of them that cannot be shared out
    memory: int  # bytes, the most on a machine, mapped files not counted
    read: int  # bytes, by all machines
    written: int  # bytes, by all machines
    traffic: int  # bytes a machine reads and writes, over a network where files lie on one


@dataclass(frozen=True, kw_only=True)
class DataPlan:
    SCHEMA: ClassVar[str] = "glint/data-plan@1"  # `glint plan data`: the cost of a dataset's stages
    images: int  # images
    identities: int  # identities
    dim: int  # numbers of an embedding
    machines: int  # given
    cores: int  # of a machine
    gpus: int  # of a machine
    stages: list[DataStage]  # in the order in which they run
    seconds: float  # of all stages, one after the other
    cpu_seconds: float  # of all stages
    memory: int  # bytes, the most on a machine
    fits: bool  # whether every stage fits the memory given
    wall: str  # what is met first: the first stage that does not fit, else the longest
    longest: str  # stage that takes longest
    measured_on: str  # the machine of the unit costs


@dataclass(frozen=True, kw_only=True)
class Launch:
    SCHEMA: ClassVar[str] = "glint/launch-result@1"  # a job for many machines
    kind: str  # its kind
    ranks: int  # processes that train
    job: str  # text


@dataclass(frozen=True, kw_only=True)
class Report:
    SCHEMA: ClassVar[str] = "glint/report-result@1"  # the page of a run
    page: str  # path of the page


@dataclass(frozen=True, kw_only=True)
class Export:
    SCHEMA: ClassVar[str] = "glint/export@1"  # a net as ONNX
    onnx: str  # path of the file
    bytes: int  # size of the file
    sha256: str  # of the file
    opset: int  # of ONNX
    dim: int  # numbers of an embedding
    backbone: str  # its name
    cosine_min: float  # least agreement with torch
    crops: int  # compared
    insightface: bool  # whether insightface loaded it
    checkpoint: str  # path of the checkpoint


@dataclass(frozen=True, kw_only=True)
class ExportSmall:
    SCHEMA: ClassVar[str] = "glint/export-small@1"  # a net as ONNX in int8 or float16
    onnx: str  # path of the file
    kind: str  # int8 or fp16
    sha256: str  # of the file
    dim: int  # numbers of an embedding
    pack: str  # path of the pairs
    pairs: int  # pairs compared
    accuracy_before: float  # of the whole net, mean of the folds
    accuracy: float  # of the smaller one
    limit: float  # percentage points that may be lost
    bytes_before: int  # size of the whole file
    bytes: int  # size of the file
    ms_before: float  # an image alone, one CPU thread
    ms: float  # an image alone, one CPU thread
    spared: int  # layers left in float32 for accuracy
    source: str  # path of the run or ONNX file


@dataclass(frozen=True, kw_only=True)
class Weights:  # a file of weights
    name: str  # name
    sha256: str  # of the file
    dtype: str  # number format of the tensors


@dataclass(frozen=True, kw_only=True)
class Import:
    SCHEMA: ClassVar[str] = "glint/import@1"  # published weights as a checkpoint
    checkpoint: str  # path of the checkpoint
    name: str  # the backbone
    embedding: int  # numbers of an embedding
    options: dict[str, Any]  # of the backbone
    parameters: int  # of the net
    tensors: int  # in the checkpoint
    source: Weights  # as manifest.json says it
    layout: str  # the known layout that the file is in; "" where its net was given


@dataclass(frozen=True, kw_only=True)
class Pack:
    SCHEMA: ClassVar[str] = "glint/pack@1"  # a verification pack made of a list of pairs
    out: str  # where it was written
    pairs: int  # pairs
    same: int  # of one person
    images: int  # different ones
    warnings: list[str]  # why an accuracy of them would say nothing


@dataclass(frozen=True, kw_only=True)
class PairSet:  # a verification set
    set: str  # its name
    accuracy: float  # mean of the folds
    std: float  # of the folds
    folds: list[float]  # accuracy of each
    tar_at_far: Rates  # true accept rate by FAR
    threshold: float  # squared distance, mean over the folds
    val: float | None  # TAR at FAR 1e-3 of the other folds
    val_std: float | None  # of the folds
    val_far: float | None  # the FAR met
    cosine_same: float | None  # mean
    cosine_different: float | None  # mean
    pairs: int  # pairs compared
    same: int  # of them, of one person


@dataclass(frozen=True, kw_only=True)
class EvalPairs(PairSet):
    SCHEMA: ClassVar[str] = "glint/eval@1"  # one verification set
    model: str  # path or name of the model
    model_digest: str  # of the model
    engine: str  # what computed it
    dim: int  # numbers of an embedding
    flip: bool  # whether the mirrored image was added


@dataclass(frozen=True, kw_only=True)
class EvalSets:
    SCHEMA: ClassVar[str] = "glint/eval@1"  # several verification sets
    accuracy: float  # mean
    sets: list[PairSet]  # each set
    model: str  # path or name of the model
    model_digest: str  # of the model
    engine: str  # what computed it
    dim: int  # numbers of an embedding
    flip: bool  # whether the mirrored image was added


@dataclass(frozen=True, kw_only=True)
class EvalAllPairs:
    SCHEMA: ClassVar[str] = "glint/eval-all-pairs@1"  # every pair of a dataset
    rows: int  # images
    dropped: int  # without embedding or identity
    identities: int  # labels
    genuine: int  # pairs of one person
    impostors: int  # pairs of different people
    tar_at_far: Rates  # true accept rate by FAR
    tar_at_most: Rates  # at the lower edge of an inexact threshold
    threshold_at_far: Rates  # cosine by FAR
    exact: dict[str, bool]  # by FAR, whether the threshold is exact
    histogram: dict[str, list[int]]  # of cosines
    roc: list[tuple[float, float]]  # FAR, TAR
    pairs_per_second: float | None  # null where nothing was left to do
    dataset: str  # the dataset
    dataset_digest: str  # of the dataset
    label_version: int  # of the labels in force
    model: str | None  # path or name of the model
    model_digest: str | None  # of the model


@dataclass(frozen=True, kw_only=True)
class EvalIjb:
    SCHEMA: ClassVar[str] = "glint/eval-ijb@1"  # the protocols of IJB-B and IJB-C
    one_to_one: dict[str, Any]  # genuine, impostors, tar_at_far, .. as for all pairs
    one_to_many: dict[str, Any] | None  # field, galleries; null without lists of probes
    images: int  # images
    templates: int  # in the list
    media: int  # in the list
    detector_score: bool  # whether images were weighed
    embeddings: str | None = None  # the .npy
    dataset: str | None = None  # the five of the dataset, with --dataset
    dataset_digest: str | None = None  # of the dataset
    label_version: int | None = None  # of the labels in force
    model: str | None = None  # path or name of the model
    model_digest: str | None = None  # of the model
    failed: int | None = None  # images without an embedding


@dataclass(frozen=True, kw_only=True)
class EvalIdentify:
    SCHEMA: ClassVar[str] = "glint/eval-identify@1"  # probes among distractors
    probes: int  # images to identify
    identities: int  # labels
    pairs: int  # pairs compared
    distractors: int  # images of other people
    dropped: int  # images without an embedding
    rank1_by_distractors: dict[str, float]  # share of probes right, by their number
    tar_at_far: Rates  # true accept rate by FAR
    seed: int  # of the order of distractors
    dataset: str  # the dataset
    dataset_digest: str  # of the dataset
    label_version: int  # of the labels in force
    model: str | None  # path or name of the model
    model_digest: str | None  # of the model
    distractor_dataset: str


@dataclass(frozen=True, kw_only=True)
class Recipe:  # a recipe of a shelf
    shelf: str  # train, pipelines or manifests
    name: str  # name
    title: str  # its first line
    path: str  # its path


@dataclass(frozen=True, kw_only=True)
class Ls:
    SCHEMA: ClassVar[str] = "glint/ls-result@1"  # the recipes
    recipes: list[Recipe]  # each of them


@dataclass(frozen=True, kw_only=True)
class Cp:
    SCHEMA: ClassVar[str] = "glint/cp-result@1"  # a copied recipe
    path: str  # its path


@dataclass(frozen=True, kw_only=True)
class Cat:
    SCHEMA: ClassVar[str] = "glint/cat-result@1"  # a recipe
    shelf: str  # train, pipelines or manifests
    name: str  # name
    path: str  # its path
    text: str  # the text


@dataclass(frozen=True, kw_only=True)
class Validate:
    SCHEMA: ClassVar[str] = "glint/validate-result@1"  # a recipe without mistakes
    path: str  # its path
    shelf: str  # train, pipelines or manifests
    valid: bool  # true
    commands: list[str]  # to run next
    recipe: dict[str, Any]  # with all defaults
    missing: list[str]  # "key = path" of what a training run reads and is not there


@dataclass(frozen=True, kw_only=True)
class Dependency:  # a package
    name: str  # name
    version: str  # "" = not installed
    works: bool  # whether it can be imported
    note: str  # what to know of the calibration


@dataclass(frozen=True, kw_only=True)
class Doctor:
    SCHEMA: ClassVar[str] = "glint/doctor-result@1"  # the machine and what is installed
    glint: str  # version
    python: str  # version
    system: str  # kernel
    cores: int  # that may be used
    ram: dict[str, int]  # bytes: total, available
    disk: dict[str, Any]  # path, free bytes
    parts: list[Dependency]  # each dependency
    detectors: dict[str, list[str]]  # packs of face detectors by the folder they are looked for in
    problems: list[str]  # what does not work


@dataclass(frozen=True, kw_only=True)
class Synth:
    SCHEMA: ClassVar[str] = "glint/synth-result@1"  # a synthetic world
    out: str  # where it was written
    identities: int  # labels
    persons: int  # people
    images: int  # images
    flipped: int  # images under a wrong label
    damaged: int  # records with broken bytes
    pairs: int  # of pairs.bin


@dataclass(frozen=True, kw_only=True)
class Demo:
    SCHEMA: ClassVar[str] = "glint/demo-result@1"  # the whole road, as in summary.json
    images_in: int  # records
    images_written: int  # samples
    images_quarantined: int  # records left out
    quarantine_reasons: dict[str, int]  # the same by reason
    identities: int  # labels
    identities_after_merge: int  # labels
    conflicts_planted: int  # pairs of labels
    conflicts_found: int  # of them, merged
    conflicts_wrong: int  # merged and not planted
    lookalikes_planted: int  # pairs of labels
    lookalikes_merged: int  # of them, merged
    pairs_masked: int  # pairs of labels
    epoch_samples: int  # draws of an epoch
    accuracy_untrained: float  # on pairs.bin
    accuracy_first: float  # of the first model
    accuracy_final: float  # of the final model, as ONNX
    accuracy_final_std: float  # over the folds
    tar_at_far: Rates  # true accept rate by FAR
    embedded: int  # images
    onnx_cosine_min: float  # least agreement with torch
    ranks: int  # processes that train
    seconds: dict[str, float]  # wall time
    seconds_total: float  # wall time
    paths: dict[str, str]  # of everything made


@dataclass(frozen=True, kw_only=True)
class RoadStep:  # a command that ended
    command: str  # as typed
    seconds: float  # wall time


@dataclass(frozen=True, kw_only=True)
class Road:
    SCHEMA: ClassVar[str] = "glint/road-result@1"  # every stage of a pipeline recipe
    steps: list[RoadStep]  # in order
    accuracy: list[float]  # on each set of pairs
    page: str  # the summary
    out: str  # where it was written


@dataclass(frozen=True, kw_only=True)
class Version:
    SCHEMA: ClassVar[str] = "glint/version@1"  # `glint --version`
    version: str  # of glint
    python: str  # that runs it


@dataclass(frozen=True, kw_only=True)
class Error:
    SCHEMA: ClassVar[str] = "glint/error@1"  # any command that fails; docs/errors.md
    error: str  # code
    slug: str  # short name of the code
    what: str  # in one sentence
    where: str  # file, offset or option
    hint: str  # what to do
    exit: int  # exit code


@dataclass(frozen=True, kw_only=True)
class Push:
    SCHEMA: ClassVar[str] = "glint/push-result@1"  # an upload to a hub
    repo: str  # owner/name
    kind: str  # model or dataset
    private: bool  # whether only its owner reads it
    commit: str  # of the hub
    files: int  # in this commit
    bytes: int  # of them


@dataclass(frozen=True, kw_only=True)
class Pull:
    SCHEMA: ClassVar[str] = "glint/pull-result@1"  # a download from a hub
    repo: str  # owner/name
    kind: str  # model or dataset
    commit: str  # of the hub
    files: int  # all of them
    bytes: int  # of them
    out: str  # where it was written
