"""The measurements as Markdown tables, and their place in the README."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import corpus_cuts
from corpus_cuts import EXACT, FAILED, OURS, ROUNDED, WRONG

BEGIN, END = "<!-- results: begin (written by run.py --write-readme) -->", "<!-- results: end -->"
_PROMISES = "### What was promised"
ORDER = ("startup", "extract", "edits", "diff", "weights", "structure", "growth", "cuts")
SIGNS = {EXACT: "=", ROUNDED: "≈", WRONG: "x", FAILED: "-"}


def render(results: Mapping[str, Any]) -> str:
    """Returns all sections that were measured, the bars first."""
    sections = (_startup, _extract, _edits, _diff, _weights, _structure, _growth, _cuts)
    tables = dict(zip(ORDER, sections, strict=True))
    parts = [_bars_table(results)]
    for name in ORDER:
        if name in results:
            parts += [*tables[name](results[name]["data"]), _conditions(results[name])]
    return "\n\n".join(part for part in parts if part) + "\n"


def bars(name: str, data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the promises of a section with what was measured."""
    if name != "cuts":
        return list(data["bars"])
    right, count = corpus_cuts.totals(data["raw"])[OURS]
    what = f"real models cut in two ({len(data['models'])} models), raw file: both halves equal the whole"
    return [
        {"what": what, "bar": "every cut", "value": f"{right} of {count}", "met": right == count if count else None}
    ]


def write_between_marks(file: Path, text: str, marks: tuple[str, str] = (BEGIN, END)) -> None:
    """Puts sections between the two marks of a file; those that stand there and are not in ``text`` stay."""
    whole = file.read_text(encoding="utf-8")
    head, begin, rest = whole.partition(marks[0])
    old, end, tail = rest.partition(marks[1])
    if not begin or not end:
        raise ValueError(f"{file} has no line {marks[0]!r} followed by {marks[1]!r}")
    file.write_text(f"{head}{begin}\n\n{_merged(old, text)}\n\n{end}{tail}", encoding="utf-8")


def _merged(old: str, new: str) -> str:
    """Returns the sections of both texts, in the order of the old one. What the new one says counts, row by row for
    what was promised.
    """
    before, after = _sections(old), _sections(new)
    for heading in before.keys() & after.keys() & {_PROMISES}:
        rows = {line.split(" | ")[0]: line for line in before[heading].splitlines()}
        rows |= {line.split(" | ")[0]: line for line in after[heading].splitlines()}
        after[heading] = "\n".join(rows.values())
    return "\n\n".join((before | after).values())


def _sections(text: str) -> dict[str, str]:
    """Splits a text before each heading; the keys are the headings."""
    parts = (part.strip() for part in re.split(r"^(?=### )", text, flags=re.MULTILINE))
    return {part.partition("\n")[0]: part for part in parts if part}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _bars_table(results: Mapping[str, Any]) -> str:
    verdict = {True: "yes", False: "**no**", None: "?"}
    rows = [
        (bar["what"], bar["bar"], bar["value"], verdict[bar["met"]])
        for name in ORDER
        if name in results
        for bar in bars(name, results[name]["data"])
    ]
    return f"{_PROMISES}\n\n" + table(("measure", "bar", "measured", "met"), rows)


def _conditions(section: Mapping[str, Any]) -> str:
    machine = section["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in section["versions"].items())
    return (
        f"<sub>{section['date']}; {machine['cores']} cores, {machine['memory_gib']:.0f} GiB of memory"
        f" ({machine['free_gib']:.0f} free), load {machine['load']} at the start; up to"
        f" {section['runs']} runs of each in turns; {versions}.</sub>"
    )


def _rows(rows: Mapping[str, Any], ratios: Mapping[str, float] | None = None) -> str:
    head = ["", "seconds (median)", "fastest to slowest", "CPU, s", "runs", "peak memory"]
    lines = []
    for name, row in rows.items():
        remark = row.get("failure") or row.get("note", "")
        if "seconds" in row:
            cells = [
                f"{row['seconds']:.2f}",
                f"{row['fastest_s']:.2f} to {row['slowest_s']:.2f}",
                f"{row['cpu_s']:.2f}",
                str(row["runs"]),
                f"{row['peak_mb']:.0f} MB",
            ]
        else:
            cells = [""] * 5
        times = [f"{ratios[name]:.1f}" if name in ratios else ""] if ratios is not None else []
        lines.append([name, *cells, *times, remark])
    return table([*head, *(["times ours"] if ratios is not None else []), ""], lines)


def _startup(data: Mapping[str, Any]) -> Iterator[str]:
    yield "### Start-up"
    yield _rows(data["rows"])


def _extract(data: Mapping[str, Any]) -> Iterator[str]:
    yield "### The middle half of 100,000 nodes"
    for title, block in data["blocks"].items():
        yield f"{title[0].upper()}{title[1:]}:"
        yield _rows(block["rows"], block["ratios"])


def _diff(data: Mapping[str, Any]) -> Iterator[str]:
    yield "### Two models of 100,000 nodes compared"
    yield _rows(data["rows"])


def _weights(data: Mapping[str, Any]) -> Iterator[str]:
    yield "### One MatMul of a model with 3 GB of external weights"
    if "trouble" in data:
        yield data["trouble"]
        return
    for title, block in data["blocks"].items():
        yield f"{data['bytes'] / 1e9:.2f} GB of {data['total'] / 1e9:.2f} GB, {title}:"
        yield _rows(block["rows"], block["ratios"])


def _structure(data: Mapping[str, Any]) -> Iterator[str]:
    yield "### Without weights, on that model"
    yield data["trouble"] if "trouble" in data else _rows(data["rows"])


def _growth(data: Mapping[str, Any]) -> Iterator[str]:
    yield "### From 10,000 to 100,000 nodes"
    rows = []
    for name, row in data["rows"].items():
        seconds = [f"{row[key]:.2f}" if row[key] else "" for key in ("tiny_s", "short_s", "long_s")]
        ratios = [f"{row[key]:.1f}" if row[key] else "" for key in ("ratio", "net_ratio")]
        peak = f"{row['peak_mb']:.0f} MB" if row["peak_mb"] else ""
        rows.append([name, *seconds, *ratios, peak, row.get("failure") or row["note"]])
    yield table(["", "40 nodes, s", "10,000, s", "100,000, s", "ratio", "ratio, start-up taken off", "peak", ""], rows)


def _edits(data: Mapping[str, Any]) -> Iterator[str]:
    yield "### The same edits"
    for title, block in data["blocks"].items():
        yield f"{title[0].upper()}{title[1:]}:"
        yield block["trouble"] if "trouble" in block else _rows(block["rows"], block["ratios"])
    yield (
        "What is left of a model with something in every field (`fixtures/models/metadata_everywhere.onnx`) when one"
        " operator is changed (onnxslim: when it is simplified):"
    )
    tools = list(data["lost"])
    fields = [name for name, said in data["lost"][OURS].items()]
    yield table(["", *tools], [[name, *(data["lost"][tool][name] for tool in tools)] for name in fields])


def _cuts(data: Mapping[str, Any]) -> Iterator[str]:
    yield "### Real models cut in two"
    yield (
        "At 25, 50 and 75 % of the nodes; `=` both halves run and equal the whole bit for bit, `≈` within fp16"
        " rounding, `x` wrong values, `-` no two models that run."
    )
    for block, title in (("raw", "Straight from the raw file"), ("helped", "Types inferred, and those of a real run")):
        found = corpus_cuts.totals(data[block])
        tools = list(data[block])
        rows = [
            ["**right**", *(f"**{found[t][0]} of {found[t][1]}**" if found[t][1] else "not installed" for t in tools)]
        ]
        rows += [
            [model, *(_signs(data[block][tool].get(model, {})) for tool in tools)]
            for model, about in data["models"].items()
            if about["cuts"]
        ]
        yield f"{title}:"
        yield table(["", *tools], rows)
        yield _reasons(data[block])
    short = {model: len(about["cuts"]) for model, about in data["models"].items() if len(about["cuts"]) < 3}
    if short:
        few = ", ".join(f"{model} ({count})" for model, count in short.items())
        yield f"Models with too few nodes for three different cuts: {few}."
    for model, why in data["uncut"].items():
        yield f"{model} was not cut: {why}."
    if data["absent"]:
        yield f"Not fetched: {', '.join(data['absent'])}."


def _signs(verdicts: Mapping[str, Mapping[str, Any]]) -> str:
    return "`" + "".join(SIGNS[row["verdict"]] for row in verdicts.values()) + "`" if verdicts else ""


def _reasons(block: Mapping[str, Any]) -> str:
    """Returns, folded away, why each cut that is not right is not."""
    why: dict[tuple[str, str], dict[str, list[str]]] = {}
    for tool, models in block.items():
        for model, cuts in models.items():
            for percent, row in cuts.items():
                if row["verdict"] in (WRONG, FAILED):
                    group = why.setdefault((tool, f"{row['verdict']}, {_plain(row['reason'])}"), {})
                    group.setdefault(model, []).append(percent)
    lines = [f"- {tool}: {words} ({_places(group)})" for (tool, words), group in why.items()]
    if not lines:
        return ""
    return f"<details><summary>Why not ({len(lines)})</summary>\n\n" + "\n".join(lines) + "\n\n</details>"


def _places(group: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{model} {'/'.join(percents)} %" for model, percents in group.items())


def _plain(reason: str) -> str:
    """Returns a reason in short, without the tensor names that differ from cut to cut."""
    for start in ("not found in value_infos", "Please set the dtype attribute", "does not have type information"):
        head, found, _ = reason.partition(start)
        if found:
            return f"{head.partition(': Load model')[0]}{': ' if 'Load model' in head else ''}{found}"[-120:]
    return reason[:120].replace("<", "&lt;").replace("\n", " ")
