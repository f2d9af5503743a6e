"""Answers about identities: embed, cluster, dedup-conflicts, coreset, balance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Embed:
    SCHEMA: ClassVar[str] = "glint/embed-result@1"  # embeddings of a dataset
    images: int  # images
    dim: int  # numbers of an embedding
    failed: int  # images without an embedding
    failures: dict[str, int]  # the same by reason
    empty_classes: int  # identities without an embedding
    centres: bool  # whether identities have centres: not where none has two images
    warning: str | None = None  # why these say nothing of who is on an image
    out: str  # where it was written
    task: str | None = None  # with --task
    left: int | None = None  # with --task: blocks left to other tasks, here 0


@dataclass(frozen=True, kw_only=True)
class EmbedShare:
    SCHEMA: ClassVar[str] = "glint/embed-result@1"  # a task's share of the embeddings
    out: str  # where it was written
    images: int  # of the dataset
    blocks: int  # of all tasks
    task: str  # as "0/4"
    left: int  # blocks left to other tasks


@dataclass(frozen=True, kw_only=True)
class Quality:
    SCHEMA: ClassVar[str] = "glint/quality-result@1"  # how well a face can be told from each image
    method: str  # "norm", "sharpness", "steady" or "net"
    images: int  # of the dataset
    scored: int  # of them
    mean: float
    quantiles: dict[str, float]  # by the share of images below
    curve: dict[str, Any] | None  # errors over images discarded; null without embeddings
    page: str  # its path
    out: str  # where it was written


@dataclass(frozen=True, kw_only=True)
class Cluster:
    SCHEMA: ClassVar[str] = "glint/cluster-result@1"  # identities found among unlabelled faces
    method: str  # online or graph
    pairs: int | None = None  # graph: near pairs of faces
    exact: bool | None = None  # graph: whether all of them were found for certain
    recall: float | None = None  # graph: the share found, measured; null where there are none
    recall_faces: float | None = None  # graph: the share of a face's near faces, on average
    recall_pairs: int | None = None  # graph, not exact: true pairs that this was measured on
    faces: int  # faces with an embedding
    without_embedding: int  # faces without one
    clusters: int  # clusters
    edges: int  # connections between clusters
    identities: int  # labels
    largest: int  # faces of the largest identity
    largest_clusters: int  # clusters of the identity with the most
    judged: int | None = None  # with --truth: faces of known identity
    pairwise_precision: float | None = None  # with --truth
    pairwise_recall: float | None = None  # with --truth
    pairwise_f: float | None = None  # with --truth
    bcubed_precision: float | None = None  # with --truth
    bcubed_recall: float | None = None  # with --truth
    bcubed_f: float | None = None  # with --truth
    out: str  # where it was written


@dataclass(frozen=True, kw_only=True)
class ClusterApply:
    SCHEMA: ClassVar[str] = "glint/cluster-apply-result@1"  # clusters put in force as labels
    version_before: int  # of the labels
    classes_before: int  # identities before
    classes: int  # identities after
    faces: int  # faces with an embedding
    identities_dropped: int  # too small
    faces_dropped: int
    dry_run: bool  # whether nothing was written
    dataset: str  # the dataset
    report: str  # the folder
    version: int  # of the labels
    applied: bool  # whether the labels changed
    already: bool  # they were in force before


@dataclass(frozen=True, kw_only=True)
class ClusterUndo:
    SCHEMA: ClassVar[str] = "glint/cluster-undo-result@1"  # the labels from before `apply`
    version_before: int  # of the labels, before
    version: int  # of the labels
    classes_before: int  # identities before
    classes: int  # identities after
    dataset: str  # the dataset
    report: str  # the folder or page of the report


@dataclass(frozen=True, kw_only=True)
class Conflicts:
    SCHEMA: ClassVar[str] = "glint/conflicts-result@1"  # what was found
    pairs: int  # pairs of identities
    merge: int  # by verdict
    mask: int  # pairs that may be one person
    keep: int  # pairs of look-alikes
    groups: int  # of identities that are one person
    largest_group: int  # identities in it
    groups_refused: int  # chains, or too large
    expected_wrong_merges: float | None  # null where not calibrated
    identities: int  # labels
    identities_after: int  # when applied
    images_in_groups: int
    samples_excluded: int  # without a usable embedding
    classes_excluded: int
    outliers: int  # images unlike the rest of their identity
    mixed: int  # identities of two people
    duplicates: int  # groups of images with the same bytes
    duplicates_across: int  # of them, under several identities
    near_duplicates: int  # groups of images of the same picture
    near_duplicates_across: int  # of them, under several identities
    calibrated: bool  # whether scores were calibrated
    note: str  # what to know of the calibration
    low: float  # centre cosine from which pairs were searched
    engine: str  # what computed it
    against: list[dict[str, Any]]  # other datasets, as in conflicts.json
    report: str  # the folder or page of the report
    out: str  # where it was written
    task: str | None = None  # with --task
    left: int | None = None  # with --task: block rows left to other tasks, here 0


@dataclass(frozen=True, kw_only=True)
class ConflictsShare:
    SCHEMA: ClassVar[str] = "glint/conflicts-result@1"  # a task's share of the search
    out: str  # where it was written
    block_rows: int  # of all tasks
    task: str  # as "0/4"
    left: int  # block rows left to other tasks


@dataclass(frozen=True, kw_only=True)
class Audit:  # merges drawn at random, and what reviewers said of them
    merges: int  # pairs that would merge
    drawn: int  # of them
    decided: int  # of the drawn, by any reviewer
    wrong: int  # kept apart by a reviewer
    unsure: int  # masked by a reviewer: counted as wrong
    wrong_at_most: float | None  # share of all merges; null before all drawn are decided
    confidence: float  # of that bound
    kind: str  # "audit" with a bound, else "estimate"


@dataclass(frozen=True, kw_only=True)
class Review:
    SCHEMA: ClassVar[str] = "glint/review-result@1"  # a review that ended
    decisions: int  # all of them
    new: int  # made in this review
    reviewers: list[str]  # their names
    file: str  # its path
    out: str  # where it was written
    audit: Audit | None = None  # with --audit


@dataclass(frozen=True, kw_only=True)
class Apply:
    SCHEMA: ClassVar[str] = "glint/apply-result@1"  # a report put in force as labels
    applied: bool  # whether the labels changed
    already: bool  # it was in force before
    dry_run: bool  # whether nothing was written
    version: int  # of the labels, now
    version_before: int  # of the labels, before
    classes: int  # identities after
    classes_before: int  # identities before
    masks: int  # masked pairs
    masks_before: int
    shards_rewritten: int  # 0
    dataset: str  # the dataset
    report: str  # the folder or page of the report
    nothing: bool | None = None  # true where the report changes nothing
    decided: int | None = None  # pairs that reviewers decided
    images_left_out: int | None = None  # images that reviewers left out
    images_moved: int | None = None  # images that reviewers gave to another identity
    undone: bool | None = None  # true for `undo`


@dataclass(frozen=True, kw_only=True)
class Undo(Apply):
    SCHEMA: ClassVar[str] = "glint/undo-result@1"  # labels from before a report, in force again


@dataclass(frozen=True, kw_only=True)
class SizeRow:  # identities by their number of images
    images_from: int
    images_to: int | None  # null for the last
    identities: int  # labels
    images: int  # images
    kept: int  # images kept


@dataclass(frozen=True, kw_only=True)
class Coreset:
    SCHEMA: ClassVar[str] = "glint/coreset-result@1"  # the images that were kept
    images: int  # images
    kept: int  # images kept
    ratio: float  # kept / images
    threshold: float  # cosine
    restored: int  # kept although similar
    similar: int  # left out as similar to a kept face
    outlier: int  # left out as unlike their identity
    no_embedding: int = field(metadata={"key": "no-embedding"})  # left out
    low_quality: int = field(metadata={"key": "low-quality"})  # left out
    identities: int  # labels
    identities_kept: int  # with an image left
    identities_uncleaned: int  # too few faces would have been left
    by_size: list[SizeRow]  # by the number of images of an identity
    label_version: int  # of the labels in force
    label_version_before: int  # another one where --apply left outliers out
    dry_run: bool  # whether nothing was written
    sampling: str  # path of the sampling table
    out: str  # where it was written


@dataclass(frozen=True, kw_only=True)
class LabelVersion:  # of a dataset
    version: int  # its number; 0 as sharded
    made_from: int | None  # the version that it was made of
    made_by: str  # the command
    classes: int  # identities
    dropped: int  # labels as sharded that are no identity
    masks: int  # masked pairs
    images_left_out: int  # single images
    images_moved: int  # single images of another label than as sharded


@dataclass(frozen=True, kw_only=True)
class Labels:
    SCHEMA: ClassVar[str] = "glint/labels-result@1"  # the label versions of a dataset
    dataset: str  # the dataset
    version: int  # in force
    versions: list[LabelVersion]


@dataclass(frozen=True, kw_only=True)
class Balance:
    SCHEMA: ClassVar[str] = "glint/balance-result@1"  # a sampling table
    identities: int  # labels
    images: int  # images
    epoch_samples: int  # draws of an epoch
    never_seen: int  # identities
    gini_before: float  # of images over identities
    gini_after: float  # of draws
    tail_share: float  # of the draws, to the half of the identities with the fewest images
    label_version: int  # of the labels in force
    sampling: str  # path of the sampling table
