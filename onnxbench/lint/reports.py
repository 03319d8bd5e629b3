"""Findings for other programs: SARIF 2.1.0 (code scanning, editors) and GitHub's workflow commands."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from onnxbench.errors import OutputError
from onnxbench.lint.findings import Finding, Findings, Place, Severity
from onnxbench.lint.rules import Rule
from onnxbench.version import __version__

SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}
_COMMANDS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "notice"}


def to_sarif(findings: Findings, rules: Iterable[Rule]) -> dict[str, Any]:
    """Returns a SARIF log with one run, its results placed by logical locations within the model's file.

    Args:
        findings: What was found.
        rules: The rules that were looked at, for the tool's description.
    """
    listed = list(rules)
    numbers = {rule.code: number for number, rule in enumerate(listed)}
    not_run = [f"not looked at: {', '.join(entry.codes)}: {entry.reason}" for entry in findings.not_run]
    notifications = [{"level": "note", "message": {"text": text}} for text in (*not_run, *findings.notes)]
    return {
        "$schema": SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "onnxbench", "version": __version__, "rules": [_rule(r) for r in listed]}},
                "invocations": [{"executionSuccessful": True, "toolExecutionNotifications": notifications}],
                "results": [_result(finding, numbers, findings.model) for finding in findings.findings],
                "columnKind": "unicodeCodePoints",
            }
        ],
    }


def _rule(rule: Rule) -> dict[str, Any]:
    help_text = f"{rule.why}\n\n{rule.mend}\n\n{rule.example_text()}"
    return {
        "id": rule.code,
        "name": "".join(word.capitalize() for word in rule.name.split("-")),
        "shortDescription": {"text": rule.summary},
        "fullDescription": {"text": rule.why},
        "help": {"text": help_text, "markdown": f"{rule.why}\n\n{rule.mend}\n\n```\n{rule.example_text()}\n```"},
        "defaultConfiguration": {"level": _LEVELS[rule.severity]},
    }


def _result(finding: Finding, numbers: dict[str, int], model: str) -> dict[str, Any]:
    text = f"{finding.message}. {finding.fix}" if finding.fix else finding.message
    location: dict[str, Any] = {"logicalLocations": [_logical(finding.where)]}
    if model:
        location["physicalLocation"] = {"artifactLocation": {"uri": model_uri(model)}}
    return {
        "ruleId": finding.code,
        "ruleIndex": numbers[finding.code],
        "level": _LEVELS[finding.severity],
        "message": {"text": text},
        "locations": [location],
        "partialFingerprints": {"place/v1": f"{finding.code}:{finding.where.path}:{finding.where.tensor or ''}"},
        "properties": {
            key: value
            for key, value in (
                ("mendable", finding.mendable),
                ("operator", finding.where.op),
                ("tensor", finding.where.tensor),
                ("module", finding.where.module),
                ("source", finding.where.source),
            )
            if value is not None
        },
    }


def _logical(place: Place) -> dict[str, Any]:
    kind = "function" if place.node or not place.tensor else "variable"
    kind = "module" if not place.path else kind
    return {
        "name": place.node or place.tensor or place.graph or "model",
        "fullyQualifiedName": place.path or "model",
        "kind": kind,
    }


def model_uri(model: str) -> str:
    """Returns a file's name as a URI reference: relative where it was given so."""
    if os.path.isabs(model):
        return Path(model).as_uri()
    return quote(Path(model).as_posix())


def write_report(path: Path, text: str) -> None:
    """Writes a report in one piece: the file is there as a whole, or as it was.

    Raises:
        OutputError: It cannot be written.
    """
    staging = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".part", dir=path.parent)
        staging = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        staging.chmod(0o666 & ~umask)
        os.replace(staging, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        if staging is not None:
            staging.unlink(missing_ok=True)


def to_github(findings: Findings) -> list[str]:
    """Returns GitHub workflow commands, one line each, which show up as annotations of a run."""
    return [
        f"::{_COMMANDS[finding.severity]} file={_property(findings.model)},"
        f"title={_property(f'{finding.code} {finding.name}')}::{_message(finding)}"
        for finding in findings.findings
    ]


def _message(finding: Finding) -> str:
    where = f"{finding.where.path}: " if finding.where.path else ""
    fix = f". {finding.fix}" if finding.fix else ""
    return _escaped(f"{where}{finding.message}{fix}")


def _property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
