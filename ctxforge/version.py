"""The version, in one place: pyproject.toml reads it from here, and so does provenance without importing metadata."""

__version__ = "0.1.0"
