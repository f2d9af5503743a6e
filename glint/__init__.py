"""glint: train face recognition on millions of identities."""

__version__ = "0.1.0"
