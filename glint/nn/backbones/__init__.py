"""Nets that turn a face crop into an embedding."""

from glint.nn.backbones.registry import create
from glint.nn.names import NAMES

__all__ = ["NAMES", "create"]
