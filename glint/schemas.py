"""The Arrow schemas of every table that glint keeps on disk."""

from __future__ import annotations

import pyarrow as pa

# One row per written sample, in shard order, then offset order.
SAMPLES = pa.schema(
    [
        ("key", pa.string()),  # nine digits, generated
        ("label", pa.int64()),  # dense, as sharded
        ("source_label", pa.string()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),  # of the image bytes inside the tar
        ("size", pa.int32()),
        ("digest", pa.binary(16)),  # xxh3-128 of the image bytes, big endian
        ("source", pa.string()),  # path below the source, or the record's key
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)

# Row i is label i.
IDENTITIES = pa.schema(
    [
        ("label", pa.int64()),
        ("source_label", pa.string()),
        ("name", pa.string()),
        ("count", pa.int64()),
    ]
)

# One row per source record that was not written.
QUARANTINE = pa.schema(
    [
        ("source", pa.string()),
        ("offset", pa.int64()),  # in the record file; null for a file of its own
        ("source_label", pa.string()),
        ("reason", pa.string()),
        ("note", pa.string()),
        ("size", pa.int64()),
        ("sha256", pa.string()),
        ("head", pa.binary()),  # the first 64 bytes
    ]
)

# What `glint align` adds to the samples: a crop's face in its photo, whose path is `source`. All in
# pixels of the photo as it is shown (turned as its Exif record asks).
CROPS = pa.schema(
    [
        ("photo_width", pa.int32()),
        ("photo_height", pa.int32()),
        ("face", pa.int32()),  # of those taken from the photo, the largest is 0
        ("box", pa.list_(pa.float32(), 4)),  # left, top, right, bottom
        (
            "points",
            pa.list_(pa.float32(), 10),
        ),  # x, y of left eye, right eye, nose, mouth's corners
        ("score", pa.float32()),  # of the detector
        ("interocular", pa.float32()),  # between the eyes
        ("yaw", pa.float32()),  # degrees, roughly: looks to the right, down, turned clockwise
        ("pitch", pa.float32()),
        ("roll", pa.float32()),
        ("blur", pa.float32()),  # variance of the crop's Laplacian: the less, the more blurred
        ("brightness", pa.float32()),  # mean grey of the crop, 0 to 255
        ("aligned", pa.bool_()),  # the image was an aligned crop already, and is kept as it is
    ]
)

# What `glint merge` adds to the samples: the dataset, by name, and the key there.
PROVENANCE = pa.schema([("dataset", pa.string()), ("dataset_key", pa.string())])

# What became of the labels of merged datasets.
MERGED = pa.schema([("dataset", pa.string()), ("old", pa.int64()), ("new", pa.int64())])

# Samples of merged datasets whose image stands in another one too, byte for byte.
DUPLICATES = pa.schema(
    [
        ("digest", pa.binary(16)),
        ("dataset", pa.string()),
        ("dataset_key", pa.string()),
        ("key", pa.string()),  # in the merged dataset
        ("label", pa.int64()),
    ]
)

# Samples of one dataset that are equal byte for byte (`glint info --duplicates --out`).
EQUALS = pa.schema(
    [
        ("group", pa.int64()),  # equal images have the same
        ("key", pa.string()),
        ("label", pa.int64()),  # as sharded
        ("target", pa.int64()),  # in force
        ("across", pa.bool_()),  # the group stands under several targets
        ("source_label", pa.string()),
        ("source", pa.string()),
    ]
)

# The same of a conflict report: equal images, and those that show the same picture.
REPEATS = pa.schema(
    [
        *EQUALS,
        ("kind", pa.string()),  # exact or near
        ("bits", pa.int64()),  # of 64, in which its hash differs from that of the group's nearest
        ("cosine", pa.float64()),  # to that image's embedding; 1 for exact
    ]
)

# Images and identities of one label that are not of one kind.
INSIDE = pa.schema(
    [
        ("kind", pa.string()),  # outlier: an image far from the others; mixed: two people
        ("key", pa.string()),
        ("label", pa.int64()),  # as sharded
        ("side", pa.int64()),  # mixed: 0 the larger set, 1 the other; null for an outlier
        ("cosine", pa.float64()),  # to the trimmed mean of the others; mixed: mean across the sets
        ("score", pa.float64()),  # 1 = what one person shows
        ("z", pa.float64()),  # spreads below what the dataset's own images or cuts show
        ("towards", pa.int64()),  # outlier: the nearest other identity; null where not looked for
        ("towards_cosine", pa.float64()),
        ("suggested", pa.string()),  # outlier: move (to `towards`) or exclude; mixed: null
    ]
)

# Identities of this dataset that another one has too, or may have.
OVERLAP = pa.schema(
    [
        ("label", pa.int64()),  # as sharded here
        ("dataset", pa.string()),  # the other one, by name
        ("dataset_label", pa.int64()),  # as sharded there
        ("dataset_source_label", pa.string()),
        ("test", pa.bool_()),  # the other one is a test set
        ("leak", pa.bool_()),  # a test set's person, or image: leave the label out of training
        ("shared", pa.int64()),  # images that stand under both, byte for byte
        ("cosine", pa.float64()),  # from here on as in PAIRS; n_b samples there
        ("cross_mean", pa.float64()),
        ("cross_q10", pa.float64()),
        ("n_a", pa.int64()),
        ("n_b", pa.int64()),
        ("score", pa.float64()),
        ("probability", pa.float64()),
        ("verdict", pa.string()),
    ]
)

# A label version: what became of each label as sharded (target -1 = dropped).
LABELS = pa.schema([("label", pa.int64()), ("target", pa.int64())])

# Targets of one label version that are, or may be, the same person (a < b).
MASKS = pa.schema([("a", pa.int64()), ("b", pa.int64())])

# Samples whose label is another one than as sharded: which (as sharded), -1 = left out.
LABEL_IMAGES = pa.schema([("row", pa.int64()), ("label", pa.int64())])

# Per target of the label version it names: how often it is drawn.
SAMPLING = pa.schema(
    [
        ("label", pa.int64()),
        ("count", pa.int64()),
        ("weight", pa.float64()),  # n^q, scaled to the same total
        ("repeat", pa.float64()),
        ("draws", pa.float64()),  # images per epoch; fractions allowed
    ]
)

# A sampling table with this column, too, masks rows of samples.parquet: `count` is what is left.
LEFT_OUT = pa.field("left_out", pa.list_(pa.int64()))

# What `glint coreset` decided on every sample, in the order of samples.parquet.
CORESET = pa.schema(
    [
        ("key", pa.string()),
        ("target", pa.int64()),  # in force; -1 = dropped
        ("kept", pa.bool_()),
        ("reason", pa.string()),  # see glint.search.nms.REASONS
        ("score", pa.float32()),  # minus the mean cosine to the identity's other faces
        ("killer", pa.int64()),  # row of the kept face that stands for this one; null elsewhere
        ("similarity", pa.float32()),  # cosine to it
    ]
)

# Pairs of identities that look alike.
PAIRS = pa.schema(
    [
        ("a", pa.int64()),
        ("b", pa.int64()),
        ("cosine", pa.float64()),  # of the class centres
        ("cross_mean", pa.float64()),  # of up to 32 x 32 samples
        ("cross_q10", pa.float64()),
        ("n_a", pa.int64()),  # samples with an embedding
        ("n_b", pa.int64()),
        ("score", pa.float64()),  # 1 = as alike as two halves of one person
        ("probability", pa.float64()),  # that both are one person; NaN where there is no model
        ("verdict", pa.string()),  # merge, mask or keep
        ("reason", pa.string()),
    ]
)

# Identities (labels as sharded) that merge into one.
GROUPS = pa.schema([("group", pa.int64()), ("label", pa.int64())])

# One row per face that `glint cluster` saw, in the order of the folders and their rows.
FACES = pa.schema(
    [
        ("source", pa.int32()),  # place in `sources` of identities.json
        ("key", pa.string()),
        ("cluster", pa.int64()),  # -1 = no embedding
        ("identity", pa.int64()),  # the smallest cluster that it is connected with
    ]
)

CLUSTERS = pa.schema(
    [
        ("cluster", pa.int64()),
        ("identity", pa.int64()),
        ("count", pa.int64()),
        ("rho", pa.float64()),  # mean cosine of two of its faces; null for one face
    ]
)

# Connected clusters (a < b).
EDGES = pa.schema([("a", pa.int64()), ("b", pa.int64())])

# One row per sample of a dataset: what `glint quality` says of its image; null for none.
QUALITY = pa.schema([("key", pa.string()), ("quality", pa.float32())])

# One row per embedded sample.
EMBEDDED = pa.schema(
    [
        ("key", pa.string()),
        ("norm", pa.float32()),
        ("status", pa.string()),
    ]
)
