"""glint: train face recognition on millions of identities.

The names of `__all__` are public: docs/api.md says what each promises. They are loaded when asked
for, so that `import glint` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from glint.errors import GlintError
    from glint.evals.embed import verify
    from glint.evals.packs import read_bin
    from glint.evals.pairs import ten_fold
    from glint.evals.rates import tar_at_far
    from glint.models.recogniser import open_model as load_recogniser
    from glint.nn.backbones import create as create_backbone
    from glint.nn.heads.class_pool import ClassPool
    from glint.nn.heads.class_queue import ClassQueue
    from glint.nn.heads.options import ClassPoolOptions, ClassQueueOptions, PartialFCOptions
    from glint.nn.heads.partial_fc import PartialFC
    from glint.nn.margins import AdaFace, ArcFace, CosFace
    from glint.nn.margins import Combined as CombinedMargin
    from glint.search.cross import pairs_across as find_pairs_across
    from glint.search.pairs import pairs_above as find_pairs
    from glint.search.ring import pairs_in_ring as find_pairs_in_ring
    from glint.shards.dataset import Dataset
    from glint.stream.augment import to_input
    from glint.stream.loader import Batch, Images, Stream
    from glint.stream.order import Order

__all__ = [
    "AdaFace",
    "ArcFace",
    "Batch",
    "ClassPool",
    "ClassPoolOptions",
    "ClassQueue",
    "ClassQueueOptions",
    "CombinedMargin",
    "CosFace",
    "Dataset",
    "GlintError",
    "Images",
    "Order",
    "PartialFC",
    "PartialFCOptions",
    "Stream",
    "create_backbone",
    "find_pairs",
    "find_pairs_across",
    "find_pairs_in_ring",
    "load_recogniser",
    "read_bin",
    "tar_at_far",
    "ten_fold",
    "to_input",
    "verify",
]

_HOMES = {
    "errors": "GlintError",
    "evals.embed": "verify",
    "evals.packs": "read_bin",
    "evals.pairs": "ten_fold",
    "evals.rates": "tar_at_far",
    "models.recogniser": "load_recogniser=open_model",
    "nn.backbones": "create_backbone=create",
    "nn.heads.class_pool": "ClassPool",
    "nn.heads.class_queue": "ClassQueue",
    "nn.heads.options": "ClassPoolOptions ClassQueueOptions PartialFCOptions",
    "nn.heads.partial_fc": "PartialFC",
    "nn.margins": "AdaFace ArcFace CombinedMargin=Combined CosFace",
    "search.cross": "find_pairs_across=pairs_across",
    "search.pairs": "find_pairs=pairs_above",
    "search.ring": "find_pairs_in_ring=pairs_in_ring",
    "shards.dataset": "Dataset",
    "stream.augment": "to_input",
    "stream.loader": "Batch Images Stream",
    "stream.order": "Order",
}


if not TYPE_CHECKING:  # to a type checker no other name is there

    def __getattr__(name: str) -> Any:
        for module, names in _HOMES.items():
            for word in names.split():
                public, _, own = word.partition("=")
                if public == name:
                    found = globals()[name] = getattr(
                        import_module(f"glint.{module}"), own or public
                    )
                    return found
        raise AttributeError(f"module 'glint' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
