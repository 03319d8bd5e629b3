"""What a suite showed, as a support table in Markdown and as JUnit's XML.

Both say the same each time: no dates, and times only where they were measured. What differs from machine to machine,
the size of an error, is in the result alone.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping

from onnxbench.suite._results import Cell, Status, SuiteResult, SuiteTable

_MARKS: Mapping[Status, tuple[str, str]] = {
    "pass": ("✓", "outputs within tolerance"),
    "fail": ("✗", "outputs off"),
    "error": ("E", "not converted, not valid, or not run"),
    "built": ("B", "the engine is built; there is no GPU to run it on"),
    "skip": ("–", "not tried"),
    "planned": ("·", "to be run"),
}


def support_table(result: SuiteResult) -> str:
    """Returns Markdown: for each suite a table of models and pipelines, what marks mean, and why some are no ticks."""
    return "\n".join(line for table in result.tables for line in _table_lines(table))


def _table_lines(table: SuiteTable) -> Iterator[str]:
    yield f"## {_text(table.title)}\n"
    if table.description:
        yield f"{table.description.strip()}\n"
    yield f"| model | {' | '.join(map(_text, table.pipelines))} |"
    yield f"|---|{':-:|' * len(table.pipelines)}"
    notes: dict[str, int] = {}
    for model in table.models:
        shown = []
        for cell in (table.cell(model, pipeline) for pipeline in table.pipelines):
            mark = _MARKS[cell.status][0]
            if cell.message and cell.status != "built":
                note = f"{_text(cell.pipeline)}: {_text(_why(cell))}"
                mark += f" <sup>{notes.setdefault(note, len(notes) + 1)}</sup>"
            shown.append(mark if cell.latency is None else f"{mark} {cell.latency.median_ms:.3g} ms")
        yield f"| {_text(model)} | {' | '.join(shown)} |"
    used = {cell.status for cell in table.cells}
    yield "\n" + ", ".join(f"{mark} {meaning}" for status, (mark, meaning) in _MARKS.items() if status in used) + ".\n"
    yield "| pipeline | what is done | on | compared with |"
    yield "|---|---|---|---|"
    for pipeline, done in table.pipelines.items():
        of = [cell for cell in table.cells if cell.pipeline == pipeline]
        on, against = (" or ".join(dict.fromkeys(getattr(cell, name) for cell in of)) for name in ("on", "against"))
        yield f"| {_text(pipeline)} | {_text(done) or 'nothing'} | {_text(on)} | {_text(against)} |"
    yield ""
    yield from (f"{number}. {note}" for note, number in notes.items())
    if notes:
        yield ""


def _why(cell: Cell) -> str:
    """Returns why a cell is as it is, without numbers that another machine may not have."""
    if cell.status == "fail" and cell.worst is not None:
        return f"output {cell.worst.name} is off"
    if cell.status == "error":
        return f"{cell.kind} error in step {cell.step!r}"
    return cell.message


def _text(words: str) -> str:
    """Returns a text that is no markup within a table."""
    return "".join(f"\\{char}" if char in "|*_`<[\\" else char for char in " ".join(words.split()))


def junit_report(result: SuiteResult) -> str:
    """Returns JUnit's XML: a test suite for each suite, a test case for each cell."""
    root = ElementTree.Element("testsuites", name="onnxbench suite")
    for table in result.tables:
        counts = table.counts
        skipped = sum(counts.get(status, 0) for status in ("built", "skip", "planned"))
        suite = ElementTree.SubElement(
            root, "testsuite", name=_legal(table.title), tests=str(len(table.cells)), skipped=str(skipped),
            failures=str(counts.get("fail", 0)), errors=str(counts.get("error", 0)),
        )  # fmt: skip
        for cell in table.cells:
            _add_case(suite, cell)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _add_case(suite: ElementTree.Element, cell: Cell) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=_legal(cell.model), name=_legal(cell.pipeline))
    if cell.latency is not None:
        case.set("time", f"{cell.latency.mean_ms / 1e3:.6f}")
    word = {"fail": "failure", "error": "error", "built": "skipped", "skip": "skipped", "planned": "skipped"}.get(
        cell.status
    )
    if word is not None:
        found = ElementTree.SubElement(case, word, message=_legal(cell.message))
        if cell.is_wrong:
            found.set("type", cell.kind or "drift")
            found.text = _legal("\n".join([cell.message, *([cell.hint] if cell.hint else []), *cell.next]))


def _legal(text: str) -> str:
    """Returns a text without characters that XML cannot have."""
    return "".join(char if char.isprintable() or char in "\n\t" else "?" for char in text)
