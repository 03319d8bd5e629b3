"""The version of onnxbench and of the JSON that its commands print, and the mark that it leaves in edited models."""

from __future__ import annotations

__version__ = "0.1.0"
SCHEMA_VERSION = 1
STAMP = "onnxbench.recipe"
"""The metadata key under which an edited model names the recipes that made it."""
