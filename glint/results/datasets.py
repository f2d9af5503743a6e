"""Answers about datasets: shard, info, reshard, merge, drop, card, verify."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Output:  # counts of a dataset that was written
    read: int  # records of the source
    written: int  # samples
    quarantined: int  # records left out, listed in quarantine.parquet
    identities: int  # labels
    digest: str  # of the dataset
    out: str  # where it was written
    shards: int  # shards of the dataset
    resumed_shards: int  # of them, those that an earlier run wrote
    task: str | None = None  # with --task
    left: int | None = None  # with --task: shards left to other tasks, here 0
    bytes: int  # of all shards


@dataclass(frozen=True, kw_only=True)
class Share:  # a task's share of a dataset; other tasks have shards left
    out: str  # where it was written
    shards: int  # shards of the dataset
    resumed_shards: int  # of this task, those that an earlier run wrote
    task: str  # as "0/4"
    left: int  # shards left to other tasks


@dataclass(frozen=True, kw_only=True)
class Shard(Output):
    SCHEMA: ClassVar[str] = "glint/shard-result@1"  # a sharded source
    quarantine_reasons: dict[str, int]  # records by reason
    notes: dict[str, int]  # samples written that may surprise, by reason
    recognised: dict[str, Any]  # of the source, see `glint.shards.sources.source.Source.describe`


@dataclass(frozen=True, kw_only=True)
class ShardShare(Share):
    SCHEMA: ClassVar[str] = "glint/shard-result@1"  # a task's share of a sharded source
    recognised: dict[str, Any]  # as above


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    SCHEMA: ClassVar[str] = "glint/shard-result@1"  # `glint shard --dry-run`
    dry_run: bool  # true
    read: int  # records of the source
    identities: int  # labels
    shards: int  # shards of the dataset
    bytes: int  # about
    recognised: dict[str, Any]  # as above


@dataclass(frozen=True, kw_only=True)
class Align(Shard):
    SCHEMA: ClassVar[str] = "glint/align-result@1"  # crops: `read` counts photos, `written` crops
    further: int  # crops that are not the first of their photo


@dataclass(frozen=True, kw_only=True)
class AlignShare(ShardShare):
    SCHEMA: ClassVar[str] = "glint/align-result@1"  # a task's share of aligned photos


@dataclass(frozen=True, kw_only=True)
class AlignPlan(ShardPlan):
    SCHEMA: ClassVar[str] = "glint/align-result@1"  # `glint align --dry-run`


@dataclass(frozen=True, kw_only=True)
class Duplicate:  # one image under several identities
    keys: list[str]  # of the samples
    labels: list[int]  # of the samples


@dataclass(frozen=True, kw_only=True)
class Duplicates:  # images that occur more than once, byte for byte
    groups: int  # distinct images
    images: int  # samples
    under_one_identity: int  # groups
    under_several: int  # groups
    shown: list[Duplicate]  # the first of those under several
    out: str | None = None  # the table, with --out


@dataclass(frozen=True, kw_only=True)
class Info:
    SCHEMA: ClassVar[str] = "glint/info-result@1"  # `glint info`
    duplicates: Duplicates | None = None  # with --duplicates
    dataset: str  # the dataset
    source: str  # as manifest.json says it
    layout: str  # as manifest.json says it
    recognised: dict[str, Any]  # what was found in the source, as manifest.json says it
    read: int  # records of the source
    written: int  # samples
    quarantined: int  # records left out
    quarantine_reasons: dict[str, int]  # the same by reason
    identities: int  # as sharded
    images_per_identity: dict[str, float]  # least, median, most
    shards: int  # shards of the dataset
    bytes: int  # size of the file
    label_version: int  # in force
    classes: int  # identities of that version
    dropped_identities: int  # of them, left out
    images_left_out: int  # single images, whatever their identity
    images_moved: int  # single images that another identity has
    masked_pairs: int  # pairs kept apart in the loss
    digest: str  # of the dataset
    glint: str  # version that wrote it


@dataclass(frozen=True, kw_only=True)
class Reshard(Output):
    SCHEMA: ClassVar[str] = "glint/reshard-result@1"  # a resharded dataset
    content: str  # digest of samples and labels, the same before and after


@dataclass(frozen=True, kw_only=True)
class ReshardShare(Share):
    SCHEMA: ClassVar[str] = "glint/reshard-result@1"  # a task's share of a resharded dataset


@dataclass(frozen=True, kw_only=True)
class Origin:  # a dataset that another is made of
    name: str  # name
    digest: str  # of the dataset
    samples: int  # images


@dataclass(frozen=True, kw_only=True)
class MergeOrigin(Origin):  # a dataset of a merge
    identities: int  # labels
    first_label: int  # its label 0 in the merged dataset


@dataclass(frozen=True, kw_only=True)
class RewritePlan:  # what a rewrite would write
    dry_run: bool  # true
    out: str  # where it was written
    written: int  # samples
    identities: int  # labels
    shards: int  # shards of the dataset


@dataclass(frozen=True, kw_only=True)
class ReshardPlan(RewritePlan):
    SCHEMA: ClassVar[str] = "glint/reshard-result@1"  # `glint reshard --dry-run`
    from_: list[Origin] = field(metadata={"key": "from"})  # of what


@dataclass(frozen=True, kw_only=True)
class MergePlan(RewritePlan):
    SCHEMA: ClassVar[str] = "glint/merge-result@1"  # `glint merge --dry-run`
    from_: list[MergeOrigin] = field(metadata={"key": "from"})  # of what
    same_labels: int | None = None  # with --same-labels: labels that several datasets have
    duplicate_images: int  # images in several datasets
    duplicate_samples: int  # samples that hold them


@dataclass(frozen=True, kw_only=True)
class Merge(Output):
    SCHEMA: ClassVar[str] = "glint/merge-result@1"  # a merged dataset
    from_: list[MergeOrigin] = field(metadata={"key": "from"})  # of what
    label_version: int  # in force
    same_labels: int | None = None  # with --same-labels: labels that several datasets have
    duplicate_images: int  # images that several datasets hold
    duplicate_samples: int  # samples that hold them


@dataclass(frozen=True, kw_only=True)
class Gone:  # who is taken down
    dataset: str  # the dataset
    identities: list[int]  # labels as sharded, with those that the labels in force merge with them
    merged_with: list[int]  # those of them that were not named
    below: list[int]  # those of them whose source label is a folder inside that of one of them
    images: int  # images
    copies: int  # images of other identities with the same bytes: they stay, but with `--copies`
    copies_erased: bool  # whether the copies go too
    already: list[int]  # taken down before
    alike: list[int]  # those that stay and have the same name, but for letter case or Unicode form
    version_before: int  # of the labels


@dataclass(frozen=True, kw_only=True)
class Drop(Gone):
    SCHEMA: ClassVar[str] = "glint/drop-result@1"  # identities taken out of the labels
    dry_run: bool  # whether nothing was written
    version: int  # of the labels, now
    erased_to: None  # null
    classes: int  # identities left


@dataclass(frozen=True, kw_only=True)
class ErasePlan(Gone):
    SCHEMA: ClassVar[str] = "glint/drop-result@1"  # `glint drop --erase OUT --dry-run`
    dry_run: bool  # true
    out: str  # where it was written
    written: int  # samples left
    shards: int  # shards of the dataset
    from_: list[Origin] = field(metadata={"key": "from"})  # of what
    erased_to: str  # OUT


@dataclass(frozen=True, kw_only=True)
class Erase(Gone):
    SCHEMA: ClassVar[str] = "glint/drop-result@1"  # identities and images left out of a new dataset
    read: int
    written: int  # samples left
    quarantined: int  # records left out
    digest: str  # of the new dataset
    out: str  # where it was written
    shards: int  # shards of the dataset
    resumed_shards: int
    bytes: int  # size of the file
    dry_run: bool  # false
    erased_to: str  # OUT
    version: int  # of the new dataset's labels
    classes: int  # identities left
    left: list[str]  # where the new dataset, searched, still holds their images or names
    left_count: int  # how many such places there are: the first hundred are in `left`


@dataclass(frozen=True, kw_only=True)
class Card:
    SCHEMA: ClassVar[str] = "glint/card-result@1"  # the README of a dataset
    dry_run: bool  # whether nothing was written
    card: str  # its path
    license: str  # as the Hugging Face hub spells it
    text: str  # the text
    replaced: list[str]  # texts that options replaced
    kept: list[str]  # texts of an earlier card


@dataclass(frozen=True, kw_only=True)
class Problem:  # something that is not as it was written
    code: str  # as in docs/errors.md
    what: str  # in one sentence
    file: str  # its path
    key: str | None  # of the sample
    offset: int | None  # bytes into the file
    expected: str  # as it should be
    found: str  # as it is
    shard: str | None  # the file's name, where it is a shard


@dataclass(frozen=True, kw_only=True)
class Against:  # a comparison with the sources, in images
    source: list[str]  # as manifest.json says it
    compared: int  # samples with a record
    missing: int  # records without a sample
    other_bytes: int  # samples that differ
    other_label: int  # samples with another label
    unknown: int  # samples without a record


@dataclass(frozen=True, kw_only=True)
class Verify:
    SCHEMA: ClassVar[str] = "glint/verify-result@1"  # what is wrong with a dataset
    ok: bool  # whether nothing is wrong
    deep: bool  # whether every byte was read
    decoded: bool = False  # whether every image was decoded
    dataset: str  # the dataset
    label_version: int | None = None  # in force
    classes: int | None = None  # identities of that version
    shards: int | None = None  # looked at
    samples: int | None = None  # in them
    identities: int | None = None  # labels
    digest: str | None = None  # of the dataset
    bytes: int | None = None  # of all shards looked at
    task: str | None = None  # with --task
    of_shards: int | None = None  # with --task: shards of the dataset
    against: Against | None = None  # with --against
    problem_count: int  # all of them
    problems: list[Problem]  # the first ones
    shown: list[str]  # the same as text
    notes: list[str]  # what is odd and not wrong
    hint: str  # what to do
    seconds: float  # wall time


@dataclass(frozen=True, kw_only=True)
class SourceKind:  # a source to compare with
    source: str  # as manifest.json says it
    kind: str  # its kind


@dataclass(frozen=True, kw_only=True)
class VerifyPlan:
    SCHEMA: ClassVar[str] = "glint/verify-result@1"  # `glint verify --dry-run`
    dry_run: bool  # true
    dataset: str  # the dataset
    deep: bool  # whether every byte was read
    against: list[SourceKind] | None = None  # with --against
    files: int  # tables
    shards: int  # shards of the dataset
    bytes: int  # of all shards


@dataclass(frozen=True, kw_only=True)
class Look:
    SCHEMA: ClassVar[str] = "glint/look-result@1"  # a dataset that was looked at
    images: int  # of the dataset
    identities: int  # in force, with an image
    shown: int  # images in the page; all where it was served
    columns: list[str]  # what images could be sorted by
    page: str | None  # its path; null where it was served
