"""Rewrites that come along: one file for each name that ``--rewrites`` takes (``repeat.py``: ``--rewrites repeat``)."""
