"""``onnxbench bisect --record``: what records a model's values on another machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench.cli._options import refuse_given

if TYPE_CHECKING:
    from onnxbench.feeding import FeedOptions


def write_recording(
    model: Path,
    folder: Path,
    *,
    on: str | None,
    feeds: FeedOptions,
    memory: int | None,
    plugins: Sequence[str],
    allow_outside: bool,
    unused: Mapping[str, Any],
    as_json: bool,
    quiet: bool,
) -> None:
    """Writes it, and says what to do there and afterwards here."""
    from onnxbench import bisection
    from onnxbench.bundles import load_bundles, operators_of
    from onnxbench.cli._render import chosen, note, print_json
    from onnxbench.wording import plural

    refuse_given(unused, "--record, which compares nothing")
    found = bisection.write_recording(
        model, folder, on=on, feeds=feeds, memory=memory, operators=operators_of(load_bundles(plugins)),
        allow_outside=allow_outside,
    )  # fmt: skip
    note(*found.notes, *chosen(found.choices), quiet=quiet)
    if as_json:
        print_json("bisect", {"recording": found})
        return
    built = f", {plural(found.built, 'engine')} built" if found.built else ""
    print(f"wrote {found.folder}: {plural(found.tensors, 'tensor')} of {plural(found.sets, 'set')} of inputs, in "
          f"{plural(found.parts, 'part')}{built}, for {found.place}")  # fmt: skip
    print(f"there: python {found.folder}/record.py")
    print(f"here:  {found.next}")
