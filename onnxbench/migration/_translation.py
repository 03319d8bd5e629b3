"""A command of trtexec or Polygraphy as the onnxbench command that does the same.

What each option becomes is data. Nothing is dropped in silence: an option that has no counterpart is named.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from onnxbench.migration._words import CommandLine

_KEEP, _FLAG, _DROP, _SHAPES, _MODEL, _ENGINE = "value", "flag", "drop", "shapes", "model", "engine"


@dataclass(frozen=True, slots=True)
class _Option:
    """What becomes of one option.

    Attributes:
        how: ``value`` (the same value), ``flag``, ``shapes`` (several in one word), ``model``, ``engine`` (files), or
            ``drop``.
        name: Its name here.
        why: Why it is dropped, where that must be said.
        takes: Whether a value stands behind it (Polygraphy).
        only: Targets that have it; others drop it.
    """

    how: str
    name: str = ""
    why: str = ""
    takes: bool = False
    only: tuple[str, ...] = ("10", "11", "rtx")


def _value(name: str, **more: object) -> _Option:
    return _Option(_KEEP, name, takes=True, **more)  # type: ignore[arg-type]


_FULL = ("10", "11")
_TIMING = "build-trt measures nothing; 'onnxbench run' does"
_PRECISION = _Option(_FLAG, only=("10",), why="convert the model first")
_CONVERTED = {"--fp16", "--bf16"}
"""What build-trt does itself where TensorRT has no such flag, if it is asked for alone."""
_TRTEXEC: dict[str, _Option] = {
    "--onnx": _Option(_MODEL, takes=True),
    "--saveEngine": _Option(_ENGINE, takes=True),
    "--loadEngine": _Option("load", takes=True),
    "--minShapes": _Option(_SHAPES, "--min-shapes", takes=True),
    "--optShapes": _Option(_SHAPES, "--opt-shapes", takes=True),
    "--maxShapes": _Option(_SHAPES, "--max-shapes", takes=True),
    "--shapes": _Option(_SHAPES, "--shapes", takes=True),
    "--profile": _value("--profile"),
    "--memPoolSize": _Option("pools", takes=True),
    "--workspace": _Option("pools", takes=True),
    "--fp16": _PRECISION,
    "--bf16": _PRECISION,
    "--int8": _PRECISION,
    "--fp8": _PRECISION,
    "--int4": _PRECISION,
    "--best": _PRECISION,
    "--calib": _Option(_DROP, why="quantize the model first", takes=True),
    "--stronglyTyped": _Option(_DROP),
    "--explicitBatch": _Option(_DROP),
    "--builderOptimizationLevel": _value("--optimization-level"),
    "--timingCacheFile": _value("--timing-cache", only=_FULL),
    "--noTF32": _Option(_FLAG, "--no-tf32"),
    "--refit": _Option(_FLAG, "--refit"),
    "--stripWeights": _Option(_FLAG, "--strip-weights"),
    "--allowWeightStreaming": _Option(_FLAG, "--weight-streaming"),
    "--versionCompatible": _Option(_FLAG, "--version-compatible"),
    "--excludeLeanRuntime": _Option(_FLAG, "--exclude-lean-runtime"),
    "--hardwareCompatibilityLevel": _value("--hardware-compatibility", only=_FULL),
    "--runtimePlatform": _value("--runtime-platform", only=_FULL),
    "--computeCapabilities": _value("--compute-capability"),
    "--useDLACore": _value("--dla-core", only=_FULL),
    "--allowGPUFallback": _Option(_FLAG, "--gpu-fallback", only=_FULL),
    "--device": _value("--device"),
    "--profilingVerbosity": _value("--profiling-verbosity"),
    "--tacticSources": _Option("list", "--tactic-sources", takes=True),
    "--maxAuxStreams": _value("--max-aux-streams"),
    "--maxTactics": _value("--max-tactics", only=_FULL),
    "--avgTiming": _value("--avg-timing", only=_FULL),
    "--minTiming": _Option(_DROP, takes=True),
    "--tilingOptimizationLevel": _value("--tiling-level"),
    "--directIO": _Option(_FLAG, "--direct-io"),
    "--plugins": _value("--plugin"),
    "--staticPlugins": _value("--plugin"),
    "--dynamicPlugins": _value("--plugin"),
    "--setPluginsToSerialize": _Option("embed", takes=True),
    "--sparsity": _Option("sparsity", takes=True),
    "--verbose": _Option(_DROP),
    "--skipInference": _Option(_DROP),
    "--buildOnly": _Option(_DROP),
    "--strictNans": _Option(_FLAG, "--strict-nans"),
    **dict.fromkeys(
        (
            "--iterations",
            "--duration",
            "--warmUp",
            "--avgRuns",
            "--percentile",
            "--streams",
            "--sleepTime",
            "--infStreams",
            "--threads",
            "--useSpinWait",
            "--useCudaGraph",
            "--noDataTransfers",
            "--separateProfileRun",
            "--dumpProfile",
            "--dumpLayerInfo",
            "--exportProfile",
            "--exportTimes",
            "--exportOutput",
            "--exportLayerInfo",
            "--dumpOutput",
            "--dumpRefit",
            "--useManagedMemory",
            "--idleTime",
        ),
        _Option(_DROP, why=_TIMING),
    ),
}
_POLYGRAPHY: dict[str, _Option] = {
    "-o": _Option(_ENGINE, takes=True),
    "--output": _Option(_ENGINE, takes=True),
    "--save-engine": _Option(_ENGINE, takes=True),
    "--convert-to": _Option(_DROP, takes=True),
    "--trt-min-shapes": _Option(_SHAPES, "--min-shapes", takes=True),
    "--trt-opt-shapes": _Option(_SHAPES, "--opt-shapes", takes=True),
    "--trt-max-shapes": _Option(_SHAPES, "--max-shapes", takes=True),
    "--input-shapes": _Option(_SHAPES, "--shapes", takes=True),
    "--pool-limit": _Option("list", "--pool-limit", takes=True),
    "--memory-pool-limit": _Option("list", "--pool-limit", takes=True),
    "--workspace": _value("--workspace"),
    "--fp16": _PRECISION,
    "--bf16": _PRECISION,
    "--int8": _PRECISION,
    "--fp8": _PRECISION,
    "--tf32": _Option(_DROP),
    "--strongly-typed": _Option(_DROP),
    "--trt": _Option(_DROP),
    "--model-type": _Option(_DROP, takes=True),
    "--onnxrt": _Option("verify"),
    "-v": _Option(_DROP),
    "-vv": _Option(_DROP),
    "--verbose": _Option(_DROP),
    "--calibration-cache": _Option(_DROP, why="quantize the model first", takes=True),
    "--builder-optimization-level": _value("--optimization-level"),
    "--load-timing-cache": _value("--timing-cache", only=_FULL),
    "--save-timing-cache": _value("--timing-cache", only=_FULL),
    "--refittable": _Option(_FLAG, "--refit"),
    "--strip-plan": _Option(_FLAG, "--strip-weights"),
    "--weight-streaming": _Option(_FLAG, "--weight-streaming"),
    "--sparse-weights": _Option(_FLAG, "--sparse-weights"),
    "--version-compatible": _Option(_FLAG, "--version-compatible"),
    "--exclude-lean-runtime": _Option(_FLAG, "--exclude-lean-runtime"),
    "--hardware-compatibility-level": _value("--hardware-compatibility", only=_FULL),
    "--runtime-platform": _value("--runtime-platform", only=_FULL),
    "--compute-capabilities": _Option("list", "--compute-capability", takes=True),
    "--use-dla": _Option("dla", only=_FULL),
    "--allow-gpu-fallback": _Option(_FLAG, "--gpu-fallback", only=_FULL),
    "--profiling-verbosity": _value("--profiling-verbosity"),
    "--tactic-sources": _Option("list", "--tactic-sources", takes=True),
    "--max-aux-streams": _value("--max-aux-streams"),
    "--tiling-optimization-level": _value("--tiling-level"),
    "--direct-io": _Option(_FLAG, "--direct-io"),
    "--plugins": _Option("list", "--plugin", takes=True),
}
_VALUES = {
    "--hardware-compatibility": {"ampere+": "ampere_plus", "samecomputecapability": "same_compute_capability"},
    "--runtime-platform": {"sameasbuild": "same_as_build", "windowsamd64": "windows_amd64"},
}
_ENGINES = (".engine", ".plan", ".trt")


@dataclass(slots=True)
class Translation:
    """What a command becomes.

    Attributes:
        words: The command, or nothing where there is no counterpart.
        notes: What is left out, and what must be done before.
    """

    words: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str | None:
        """Returns the command in one line, quoted for a shell; variables of the script stay variables."""
        return " ".join(map(_quoted, self.words)) or None


def _quoted(word: str) -> str:
    if "$" in word and not any(char in word for char in " \"'\\`;|&<>"):
        return f'"{word}"'
    return shlex.quote(word)


def translate(command: CommandLine, target: str) -> Translation:
    """Returns the onnxbench command for one of trtexec or Polygraphy."""
    words = [word.text for word in command.words]
    if command.program == "trtexec":
        return _Builder(_TRTEXEC, target).build(words)
    head, rest = words[0], words[1:]
    if head == "convert" and not _converts_elsewhere(rest):
        return _Builder(_POLYGRAPHY, target, positional=True).build(rest)
    if head == "run" and "--trt" in rest:
        return _Builder(_POLYGRAPHY, target, positional=True).build(rest)
    return _other(head, rest)


def _converts_elsewhere(words: Sequence[str]) -> bool:
    kind = next((words[at + 1] for at, word in enumerate(words[:-1]) if word == "--convert-to"), "trt")
    return kind != "trt" or "--fp-to-fp16" in words


def _other(head: str, rest: Sequence[str]) -> Translation:
    """Returns what other subcommands of Polygraphy are here, where the model alone has to be named."""
    model = next((word for word in rest if word.endswith((".onnx", *_ENGINES))), "")
    second = rest[0] if rest and not rest[0].startswith("-") else ""
    if (head, second) == ("surgeon", "extract"):
        return _extraction(rest[1:])
    commands = {
        ("inspect", "model"): ["inspect", model], ("inspect", "capability"): ["capability", model],
        ("debug", "precision"): ["bisect", "CONVERTED.onnx", "--against", model or "MODEL.onnx"],
    }  # fmt: skip
    found = commands.get((head, second))
    if found is None or not all(found):
        return Translation()
    return Translation(["onnxbench", *found])


def _extraction(words: Sequence[str]) -> Translation:
    """Returns ``surgeon extract`` as extract, which has its options and takes the file to write as an argument."""
    parts: dict[str, list[str]] = {"": []}
    name = ""
    for word in words:
        name = word if word.startswith("-") else name
        parts.setdefault(name, [])
        if word != name:
            parts[name].append(word)
    model = parts[""][:1] or [word for each in parts.values() for word in each if word.endswith(".onnx")][:1]
    out = parts.get("-o", parts.get("--output", []))[:1]
    ends = [name for name in ("--inputs", "--outputs") if parts.get(name)]
    if not model or not out or not ends:
        return Translation()
    notes = [f"{name}: no counterpart here" for name in parts if name not in ("", "-o", "--output", *ends)]
    return Translation(
        ["onnxbench", "extract", *model, *out, *(word for name in ends for word in (name, *parts[name]))], notes
    )


class _Builder:
    """Puts a build-trt command together, option by option."""

    def __init__(self, options: dict[str, _Option], target: str, *, positional: bool = False) -> None:
        self._options, self._target, self._positional = options, target, positional
        self._model = self._engine = self._loaded = ""
        self._words: list[str] = []
        self._notes: list[str] = []
        self._verify = self._converts = False

    def build(self, words: Sequence[str]) -> Translation:
        precisions = {name for word in words if self._options.get(name := word.partition("=")[0]) is _PRECISION}
        self._converts = len(precisions) == 1 and precisions <= _CONVERTED
        queue = list(words)
        while queue:
            word = queue.pop(0)
            if not word.startswith("-"):
                if self._positional and not self._model:
                    self._model = word
                elif word.strip("()[]{}.,"):
                    self._notes.append(f"{word}: not understood, and left out")
                continue
            name, sign, value = word.partition("=")
            option = self._options.get(name)
            values = [value] if sign else []
            if not sign and (option is None or option.takes):
                while queue and not queue[0].startswith("-") and (option is not None or self._positional):
                    if option is None and not self._model and queue[0].endswith(".onnx"):
                        break
                    values.append(queue.pop(0))
                    if option is not None and option.how not in (_SHAPES, "list"):
                        break
            self._add(name, option, values)
        return self._finished()

    def _add(self, name: str, option: _Option | None, values: list[str]) -> None:
        if option is None:
            self._notes.append(f"{name}: no counterpart here")
        elif option is _PRECISION and self._converts:
            self._words.append(name)
        elif option.how == _DROP or self._target not in option.only:
            if option.why:
                self._notes.append(f"{name}: {option.why}")
            elif self._target not in option.only:
                self._notes.append(f"{name}: TensorRT-RTX does not have it")
        elif option.how == _MODEL:
            self._model = values[0] if values else ""
        elif option.how == _ENGINE:
            self._engine = values[0] if values else ""
        elif option.how == "load":
            self._loaded = values[0] if values else ""
        elif option.how == "verify":
            self._verify = True
        elif option.how == _FLAG:
            self._words.append(option.name or name)
        elif option.how == _SHAPES:
            self._words += [option.name, *_shapes(values)]
        elif option.how == "list":
            self._list(name, option, [part for value in values for part in value.split(",")])
        elif option.how == "pools":
            parts = [part for value in values for part in value.split(",")]
            self._words += ["--pool-limit", *(_pool(part) for part in parts)]
        elif option.how == "embed":
            self._words += ["--plugin", *values, *(["--embed-plugins"] if "--embed-plugins" not in self._words else [])]
        elif option.how == "sparsity":
            self._words += ["--sparse-weights"] if values != ["disable"] else []
        elif option.how == "dla":
            self._words += ["--dla-core", "0"]
        else:
            known = _VALUES.get(option.name, {})
            self._words += [option.name, *(known.get(value.lower(), value) for value in values)]

    def _list(self, name: str, option: _Option, parts: list[str]) -> None:
        """Adds an option with several values; one that begins with a minus would be taken for an option itself."""
        if option.name == "--tactic-sources" and self._target == "rtx":
            gone = [part for part in parts if part.lstrip("+-").upper().startswith(("CUBLAS", "CUDNN"))]
            self._notes += [f"{name} {part}: TensorRT-RTX does not have it" for part in gone]
            parts = [part for part in parts if part not in gone]
        if any(part.startswith("-") for part in parts):
            self._words += [f"{option.name}={part}" for part in parts]
        elif parts:
            self._words += [option.name, *parts]

    def _finished(self) -> Translation:
        if "--min-shapes" in self._words and "--shapes" in self._words:
            at = self._words.index("--shapes")
            end = next(
                (n for n in range(at + 1, len(self._words)) if self._words[n].startswith("--")), len(self._words)
            )
            del self._words[at:end]
            self._notes.append("--shapes: beside a profile it says at which shapes to run")
        if self._model.endswith(_ENGINES):
            self._loaded, self._model = self._model, ""
        if self._model.endswith(".py") or not PurePosixPath(self._model).stem.strip("."):
            self._model = ""
        if not self._model:
            if not self._loaded:
                return Translation([], self._notes)
            return Translation(["onnxbench", "run", self._loaded], self._notes)
        if not self._engine:
            self._engine = f"{PurePosixPath(self._model).stem}.engine" if "$" not in self._model else "model.engine"
        ends = [
            *(["--verify"] if self._verify else []),
            *(["--engine", "tensorrt-rtx"] if self._target == "rtx" else []),
        ]
        return Translation(["onnxbench", "build-trt", self._model, self._engine, *self._words, *ends], self._notes)


def _shapes(values: Sequence[str]) -> list[str]:
    """Returns shapes one a word: ``a:1x3,b:4`` and ``a:[1,3] b:[4]``."""
    found: list[str] = []
    for value in values:
        depth, part = 0, ""
        for char in value:
            depth += (char == "[") - (char == "]")
            if char == "," and not depth:
                found.append(part)
                part = ""
            else:
                part += char
        found.append(part)
    return [part for part in found if part]


def _pool(part: str) -> str:
    """Returns a pool with its unit: trtexec counts in MiB."""
    name, sign, size = part.rpartition(":")
    size = size if size[-1:].isalpha() else f"{size}M"
    return f"{name if sign else 'workspace'}:{size}"
