"""``onnxbench check``: what is wrong with a model, or will be where it is deployed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from onnxbench.cli._command import means_nothing_without
from onnxbench.cli._options import AllowOutside, AsJson, ModelArgument, Quiet
from onnxbench.wording import plural

if TYPE_CHECKING:
    from onnxbench.bundles import Bundle
    from onnxbench.lint import Finding, Findings, Opener, Severity

_PER_RULE = 10
_FORMATS = ("text", "json", "sarif", "github")


@means_nothing_without(custom_ops="ort")
def check(
    model: ModelArgument,
    select: Annotated[
        list[str] | None,
        typer.Option("--select", metavar="RULE...", help="Only these: OB105, OB1, unsorted-nodes.", show_default=False),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option("--ignore", metavar="RULE...", help="All but these, spelled alike.", show_default=False),
    ] = None,
    severity: Annotated[
        str, typer.Option("--severity", metavar="LEVEL", help="Show what is at least so bad: error, warning, info.")
    ] = "info",
    fail_on: Annotated[
        str, typer.Option("--fail-on", metavar="LEVEL", help="Exit 1 at: error, warning, info, or never.")
    ] = "error",
    target: Annotated[
        str | None,
        typer.Option(
            "--target", metavar="RUNTIME", help="Judge for one runtime: onnxruntime, tensorrt.", show_default=False
        ),
    ] = None,
    ort: Annotated[bool, typer.Option("--ort", help="Also make a session in ONNX Runtime.")] = False,
    trt: Annotated[
        bool | None,
        typer.Option(
            "--trt/--no-trt",
            show_default=False,
            help="Also ask TensorRT, with a trial build. Default: with --target tensorrt, its parser, if installed.",
        ),
    ] = None,
    custom_ops: Annotated[
        list[Path] | None,
        typer.Option(
            "--custom-ops",
            metavar="LIB...",
            help="With --ort: libraries with custom operators (they are code).",
            show_default=False,
        ),
    ] = None,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin",
            metavar="BUNDLE...",
            help="Bundles of custom operators, to be checked as ONNX's own are (their code is run).",
            show_default=False,
        ),
    ] = None,
    values: Annotated[
        bool, typer.Option("--values", help="Also read the weights: NaN, Inf, what float16 or int32 cannot hold.")
    ] = False,
    form: Annotated[
        str,
        typer.Option("--format", "--output-format", "-f", metavar="FORMAT", help="text, json, sarif, or github."),
    ] = "text",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write the report to a file.", show_default=False),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=0, help="In text: findings shown for each rule (0: all).")
    ] = _PER_RULE,
    allow_outside: AllowOutside = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check a model: the onnx checker in full, and what it does not look at; every finding with its place.

    Reads no weights unless --values is given. 'onnxbench explain CODE' says why a rule matters and how to mend what it
    finds. Findings marked [mendable] go away when onnxbench writes the model.

    \b
    Examples:
      onnxbench check model.onnx
      onnxbench check model.onnx --ort --values
      onnxbench check model.onnx --target tensorrt --fail-on warning
      onnxbench check model.onnx --plugin plugins/roi_align --ort
      onnxbench check model.onnx --select OB1 OB3 --ignore unnamed-nodes
      onnxbench check model.onnx --format sarif -o model.sarif
      onnxbench check model.onnx --json
    """
    from onnxbench import bundles, lint
    from onnxbench.feeding import refuse_to_overwrite
    from onnxbench.model import load

    form = _known_format(form, as_json=as_json)
    least, worst = lint.to_severity(severity), None if fail_on == "never" else lint.to_severity(fail_on)
    loaded = load(model, allow_outside=allow_outside, require_weights=False)
    refuse_to_overwrite(loaded, (), output)
    known = bundles.load_bundles(plugin or [])
    openers = _openers(target, custom_ops or [], plugin or [], known, ort=ort, trt=trt)
    with bundles.registered(known):
        found = lint.check(
            loaded, select=select or (), ignore=ignore or (), target=target, values=values, openers=openers
        )
    found = replace(found, notes=_unasked(target, model, openers or {}, trial=bool(trt)))
    _deliver(found.at_least(least), form, output, limit=limit, quiet=quiet)
    raise typer.Exit(1 if found.fails(worst) else 0)


def _known_format(form: str, *, as_json: bool) -> str:
    from onnxbench.errors import UsageError, did_you_mean

    if form not in _FORMATS:
        hint = did_you_mean(form, _FORMATS) or f"Formats: {', '.join(_FORMATS)}."
        raise UsageError(f"{form!r} is not a format", hint=hint)
    if as_json and form not in ("text", "json"):
        raise UsageError(f"--json and --format {form} contradict each other")
    return "json" if as_json else form


def _openers(
    target: str | None, libraries: list[Path], plugins: list[str], known: list[Bundle], *, ort: bool, trt: bool | None
) -> dict[str, Opener] | None:
    """Returns the runtimes that are asked themselves."""
    openers: dict[str, Opener] = {"ONNX Runtime": _opener(libraries, known)} if ort else {}
    if trt or (trt is None and target == "tensorrt"):
        from onnxbench.bundles import find_plugins
        from onnxbench.engine import choose, installed, judge

        if trt:
            choose()
        if trt or installed():
            openers["TensorRT"] = lambda model: judge(model, trial=bool(trt), plugins=find_plugins(plugins))
    return openers or None


def _unasked(target: str | None, model: Path, openers: Collection[str], *, trial: bool) -> tuple[str, ...]:
    """Returns what the target was not asked, and the command that asks it."""
    if target == "onnxruntime" and "ONNX Runtime" not in openers:
        return ("only rules were looked at: ONNX Runtime made no session of the model (--ort makes one)",)
    if target != "tensorrt" or trial:
        return ()
    engine = quote(model.with_suffix(".engine").name)
    asked = "TensorRT parsed the model" if "TensorRT" in openers else "only rules were looked at"
    return (f"{asked}, and nothing was built: 'onnxbench build-trt {quote(str(model))} {engine}' builds an engine",)


def _opener(libraries: list[Path], known: list[Bundle]) -> Opener:
    from onnxbench.backends import Options, open_session
    from onnxbench.bundles import operators_of

    operators = operators_of(known)
    return lambda model: open_session(model, options=Options(libraries=tuple(libraries), operators=operators))


def _deliver(found: Findings, form: str, output: Path | None, *, limit: int, quiet: bool) -> None:
    """Prints a report, or writes it to a file."""
    from onnxbench.cli._render import note
    from onnxbench.lint.reports import write_report

    if output is None or str(output) == "-":
        _print(found, form, limit)
        return
    with contextlib.redirect_stdout(io.StringIO()) as text:
        _print(found, form, limit)
    write_report(output, text.getvalue())
    note(f"{_verdict(found)}; wrote {output}", quiet=quiet)


def _print(found: Findings, form: str, limit: int) -> None:
    from onnxbench import lint
    from onnxbench.cli._render import print_json
    from onnxbench.lint import reports

    if form == "json":
        print_json("check", found)
    elif form == "sarif":
        log = reports.to_sarif(found, [lint.find_rule(code) for code in found.checked])
        print(json.dumps(log, indent=2, ensure_ascii=False))
    elif form == "github":
        for line in reports.to_github(found):
            print(line)
    else:
        for line in _text(found, limit):
            print(line)


def _text(found: Findings, limit: int) -> Iterator[str]:
    """Yields the report as people read it: findings by rule, the worst first, then the verdict."""
    from onnxbench.cli._tables import plain
    from onnxbench.lint import find_rule

    for (severity, code), members in groupby(found.findings, key=lambda finding: (finding.severity, finding.code)):
        findings = list(members)
        rule = find_rule(code)
        start, end = _style(severity)
        yield f"{start}{severity}{end} {code} {rule.name}: {rule.summary}"
        shown = findings[: limit or None]
        for finding in shown:
            mark = "  [mendable]" if finding.mendable else ""
            yield f"  {plain(_place(finding))}{plain(finding.message)}{mark}"
        if len(shown) < len(findings):
            yield f"  ... and {len(findings) - len(shown):,} more (--limit 0 shows all)"
        for fix in dict.fromkeys(finding.fix or rule.mend for finding in shown):
            yield f"  -> {plain(fix)}"
        yield ""
    for entry in found.not_run:
        yield f"not looked at: {', '.join(entry.codes)}: {plain(entry.reason)}"
    yield from map(plain, found.notes)
    yield _verdict(found)


def _place(finding: Finding) -> str:
    where = finding.where
    parts = [f"{where.path or 'model'}"]
    if where.op and where.op not in (where.node or ""):
        parts.append(f" ({where.op})")
    origin = ", ".join(word for word in (where.module, where.source) if word)
    if origin:
        parts.append(f" [{origin}]")
    return f"{''.join(parts)}: "


def _verdict(found: Findings) -> str:
    from onnxbench.lint import Severity

    counts = [(found.count(severity), str(severity)) for severity in Severity]
    words = ", ".join(plural(count, noun) for count, noun in counts if count)
    mendable = sum(finding.mendable for finding in found.findings)
    note = f" ({mendable:,} mendable)" if mendable else ""
    name = f"{found.model}: " if found.model else ""
    return f"{name}{words or 'no findings'}{note}; {len(found.checked)} rules looked at"


def _style(severity: Severity) -> tuple[str, str]:
    """Returns what colours a word on a terminal."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return "", ""
    return {"error": "\033[1;31m", "warning": "\033[1;33m"}.get(str(severity), "\033[1;36m"), "\033[0m"
