"""New weights that are too large to be held in memory, until the model that has them is written.

An edit that casts gigabytes of weights makes their new bytes block by block, long before it is known where the model
goes, or whether it is written at all. They go into a temporary file, and tensors refer to ranges of it as they do to
ranges of any other file. Rejected: making the bytes while the model is written, for checks, verification and each
further operation want to read them too. A command that only writes the model has a range reserved, and the bytes made
when they are copied into the result (``Model.promise``); whoever wants to read them before has them filled in.

The file goes when the last model that refers to it does, at the latest with the process, whether an edit fails or not.
Rejected: a file without a name, reached through its open descriptor (``/proc/self/fd``), which even SIGKILL would not
leave behind. ONNX Runtime resolves the path and finds nothing there, and it opens the file itself where an edit is
verified.
"""

from __future__ import annotations

import errno
import os
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from onnxbench.errors import OutputError
from onnxbench.weights import ByteRange


class Scratch:
    """A temporary file that grows, made when it is first written to.

    Args:
        folder: Where it lies; None means the usual folder for temporary files (``TMPDIR``).
        what: What it holds, for errors.
    """

    def __init__(self, folder: Path | None = None, *, what: str = "new weights") -> None:
        self._folder, self._what = folder, what
        self._file: IO[bytes] | None = None
        self._path: Path | None = None
        self._end = 0

    @property
    def path(self) -> Path | None:
        """By what path its bytes can be read while this object lives; None while it is empty."""
        return self._path

    def append(self, blocks: Iterable[bytes]) -> ByteRange:
        """Writes bytes at the end and returns where they lie.

        Raises:
            OutputError: There is no space left, or the folder cannot be written to.
        """
        start = self._end
        length = self._write(blocks, start)
        self._end = start + length
        return ByteRange(self._named(), start, length)

    def reserve(self, length: int) -> ByteRange:
        """Returns a range at the end whose bytes are not there yet (see ``fill``); it takes no space on the disk.

        Raises:
            OutputError: The folder cannot be written to.
        """
        start = self._end
        self._end += length
        self._write((), start)
        os.truncate(self._named(), self._end)
        return ByteRange(self._named(), start, length)

    def fill(self, where: ByteRange, blocks: Iterable[bytes]) -> None:
        """Writes the bytes of a range that was reserved.

        Raises:
            OutputError: There is no space left, or the folder cannot be written to.
        """
        self._write(blocks, where.offset)

    def _named(self) -> Path:
        assert self._path is not None
        return self._path

    def _write(self, blocks: Iterable[bytes], start: int) -> int:
        try:
            file = self._open()
            file.seek(start)
            length = sum(file.write(block) for block in blocks)
            file.flush()
        except OSError as error:
            where = self._folder or tempfile.gettempdir()
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OutputError(
                    f"no space left in {where}, where {self._what} lie for a while",
                    hint="TMPDIR names another folder.",
                ) from None
            raise OutputError(f"cannot write temporary {self._what} in {where}: {error.strerror or error}") from None
        return length

    def _open(self) -> IO[bytes]:
        if self._file is None or self._path is None:
            self._file = tempfile.NamedTemporaryFile(  # noqa: SIM115 - for as long as the model is there
                prefix="onnxbench-", suffix=".weights", dir=self._folder
            )
            self._path = Path(self._file.name)
            weakref.finalize(self, self._file.close)
        return self._file
