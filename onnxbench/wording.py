"""Words for numbers, the same in every message and report."""

from __future__ import annotations


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """Returns ``1 node``, ``2,000 nodes``; ``nouns`` where that is no mere ``s``."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"
