"""Every error a user can meet: one class per exit code, one stable code per mistake."""

from __future__ import annotations

# code -> (slug, meaning). Codes and slugs are public interface: never reuse one.
# Ranges: GL00 usage and paths, GL01 recipes, GL02 sources and sharding, GL03 dataset on disk,
# GL04 models and embeddings, GL05 conflicts and decisions, GL06 ranks and launch,
# GL07 training and checkpoints, GL08 evaluation files, GL09 machine resources.
CODES: dict[str, tuple[str, str]] = {
    "GL0001": ("no-such-path", "A path that was named does not exist."),
    "GL0002": ("bad-option", "An option's value is not usable."),
    "GL0003": ("missing-extra", "The command needs an optional dependency that is not installed."),
    "GL0004": ("output-exists", "The output exists already and was not made by this command."),
    "GL0005": ("output-busy", "Another run is writing to this output."),
    "GL0006": ("plan-mismatch", "The output was begun from other inputs or options."),
    "GL0007": ("not-writable", "The output cannot be written."),
    "GL0101": ("bad-toml", "A recipe is not valid TOML."),
    "GL0102": ("bad-recipe", "A recipe has unknown keys or wrong values."),
    "GL0103": ("no-such-recipe", "No recipe of that name or path."),
    "GL0201": ("unknown-source", "The source is of no layout that glint reads."),
    "GL0213": ("corrupt-record", "A RecordIO record is damaged."),
    "GL0214": ("bad-archive", "An archive or table of images is damaged, or of an unknown kind."),
    "GL0216": ("idx-mismatch", "An .idx file does not belong to its .rec file."),
    "GL0221": ("over-bad-budget", "More records were bad than the budget allows."),
    "GL0222": ("bad-label", "A label is not a usable class number."),
    "GL0301": ("not-a-dataset", "The folder is not a glint dataset."),
    "GL0302": ("shard-damaged", "A shard does not match its index."),
    "GL0303": ("sample-damaged", "A sample's bytes do not match its checksum."),
    "GL0304": ("bad-label-table", "A label table does not fit its dataset."),
    "GL0305": ("bad-sampling-table", "A sampling table does not fit its dataset and labels."),
    "GL0306": ("verification-failed", "A dataset is not as it was written."),
    "GL0307": ("bad-card", "The marks of a dataset card are damaged."),
    "GL0308": ("taken-down", "Labels hold an identity or an image that was taken down."),
    "GL0309": ("labels-changed", "Another command changed the labels meanwhile."),
    "GL0401": ("bad-model", "A model file cannot be used."),
    "GL0402": ("bad-embeddings", "Embeddings do not fit the dataset."),
    "GL0501": ("bad-decisions", "Decisions contradict each other or do not fit the dataset."),
    "GL0502": ("nothing-to-undo", "No applied version to undo."),
    "GL0503": ("too-many-pairs", "More pairs pass the search threshold than can be held."),
    "GL0504": ("pairs-missed", "An approximate search finds too few of the near pairs."),
    "GL0601": ("rank-lost", "A training rank died."),
    "GL0602": ("ranks-disagree", "Ranks were started with different code, data or recipe."),
    "GL0603": ("collectives-failed", "The ranks are all there and cannot exchange data."),
    "GL0701": ("bad-checkpoint", "A checkpoint is damaged or incomplete."),
    "GL0702": ("resume-mismatch", "The run was started with other data or another recipe."),
    "GL0703": ("diverged", "The loss or a gradient is not finite."),
    "GL0704": ("stopped", "Stopped on a signal; state saved; the same command continues."),
    "GL0705": ("tuned-worse", "A tuned net is worse than it was by more than the margin."),
    "GL0706": ("no-descent", "No learning rate makes the loss fall."),
    "GL0707": ("lossy-export", "A smaller form of a net loses more accuracy than the limit."),
    "GL0801": ("unsafe-pickle", "A pickle asks for more than plain data."),
    "GL0802": ("bad-pairs", "A pairs file is malformed."),
    "GL0803": ("not-for-sharing", "What would be given or taken is not safe to share."),
    "GL0901": ("disk-full", "No space left on the device."),
    "GL0902": ("worker-lost", "A loader process died or stopped answering."),
    "GL0903": ("read-failed", "A source cannot be read."),
    "GL0904": ("out-of-memory", "The device has too little memory for a step."),
}


class GlintError(Exception):
    """A mistake or mishap that the user can act on.

    code: key of `CODES`; what: expected and found, in one sentence; where: file, offset, record,
    key; hint: what to do about it.
    """

    exit_code = 1

    def __init__(self, code: str, what: str, *, where: str = "", hint: str = "") -> None:
        self.code, self.what, self.where, self.hint = code, what, where, hint
        self.slug = CODES[code][0]
        super().__init__(f"{code} {self.slug}: " + (f"{where}: {what}" if where else what))

    def __reduce__(self) -> tuple[object, ...]:  # survives a process pool
        return _rebuild, (type(self), self.code, self.what, self.where, self.hint)


def _rebuild(cls: type[GlintError], code: str, what: str, where: str, hint: str) -> GlintError:
    return cls(code, what, where=where, hint=hint)


class UsageError(GlintError):
    """The command line or recipe is wrong."""

    exit_code = 2


class InputError(GlintError):
    """Input is bad, or a verification failed."""

    exit_code = 3


class BusyError(GlintError):
    """The output is in use or belongs to somebody else."""

    exit_code = 4


class BudgetError(GlintError):
    """Finished, but more was bad than allowed; `result` is what the work returned."""

    exit_code = 5
    result: object = None


class ResourceError(GlintError):
    """Disk, memory or device ran out or is missing."""

    exit_code = 6


class MismatchError(GlintError):
    """Fingerprint or resume mismatch."""

    exit_code = 7


class UnsafeError(GlintError):
    """Refused as unsafe."""

    exit_code = 8


class DivergedError(GlintError):
    """Training diverged."""

    exit_code = 9


class LostError(GlintError):
    """A worker or rank was lost for good."""

    exit_code = 10


class Stopped(GlintError):
    """Stopped on a signal with state saved: run the same command to continue."""

    exit_code = 75
