"""Nets that turn a face crop into an embedding."""

from glint.nn.backbones.registry import NAMES, create

__all__ = ["NAMES", "create"]
