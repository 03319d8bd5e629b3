"""The version of onnxbench, and of the JSON that its commands print."""

from __future__ import annotations

__version__ = "0.1.0"
SCHEMA_VERSION = 1
