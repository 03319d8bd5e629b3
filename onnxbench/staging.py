"""Hidden folders beside a target, in which it is made before it is moved into place.

A process that is killed outright leaves its folder behind. The next one that writes the same target removes it: a
folder is in use as long as some process holds a lock on it, and the system gives a lock back whenever a process ends.
(A process number in the name would not do: containers that share a disk do not share these.)
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

BEFORE = "before"
"""The folder within one that holds what the target was before, while the new files are moved into place."""
_ENDING = ".part"
_GRACE = 60.0
"""Seconds for which a folder is left alone in any case: between its making and its locking lies a moment."""


@contextlib.contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """Gives a hidden folder beside the target, gone afterwards whatever happens.

    Raises:
        OSError: It cannot be made.
    """
    prefix = f".{target.name[:40]}."
    _remove_abandoned(target.parent, prefix)
    folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=_ENDING, dir=target.parent))
    handle = _locked(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Removes folders that we made for this target and nobody holds; never one with the target's last copy in it."""
    name = re.compile(re.escape(prefix) + r"[a-z0-9_]{8}" + re.escape(_ENDING))
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if not name.fullmatch(entry.name) or not entry.is_dir(follow_symlinks=False):
                continue
            folder = Path(entry.path)
            if time.time() - entry.stat(follow_symlinks=False).st_mtime < _GRACE or (folder / BEFORE).exists():
                continue
            handle = _locked(folder)
            if handle is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(handle)


def _locked(folder: Path) -> int | None:
    """Returns a handle with a lock on a folder; None where another process has it, or there are no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle
