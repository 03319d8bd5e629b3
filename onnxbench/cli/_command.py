"""How words on the command line become a command, its options and their values.

List options take several values each, as users of argparse-style tools type them:
``extract in.onnx out.onnx --inputs a b --outputs c`` and ``--inputs a --inputs b`` mean the same. A list option
takes every word up to the next option. Where positional arguments would then be missing
(``extract --outputs c in.onnx out.onnx``), the last words of the last list are them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from typer import BadParameter
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from onnxbench.errors import UsageError, did_you_mean

F = TypeVar("F", bound=Callable[..., None])

TYPED: ContextVar[tuple[str, ...]] = ContextVar("onnxbench_typed", default=())
"""The words behind the command's name, list options spread, as they were last parsed."""


SECOND_NAMES: dict[str, tuple[str, ...]] = {
    "--iters": ("--iterations",),
    "--load-results": ("--load-outputs",),
    "--abs-tol": ("--atol",),
    "--rel-tol": ("--rtol",),
    "--execution-providers": ("--provider",),
    "--graph-optimization-level": ("--optimization-level",),
    "--data-loader-script": ("--feeds",),
    "--loadInputs": ("--feeds",),
    "--input-data-path": ("--feeds",),
    "--test-input-shape": ("--shape",),
    "--custom-lib": ("--custom-ops",),
    "--input_op_names": ("--inputs",),
    "--output_op_names": ("--outputs",),
    "--save-as-external-data": ("--save-external-data", "auto"),
    "--no-save-all-tensors-to-one-file": ("--external-per-tensor",),
    "--output-file": ("--output",),
    "--trt-min-shapes": ("--min-shapes",),
    "--minShapes": ("--min-shapes",),
    "--trt_profile_min_shapes": ("--min-shapes",),
    "--trt-opt-shapes": ("--opt-shapes",),
    "--optShapes": ("--opt-shapes",),
    "--trt_profile_opt_shapes": ("--opt-shapes",),
    "--trt-max-shapes": ("--max-shapes",),
    "--maxShapes": ("--max-shapes",),
    "--trt_profile_max_shapes": ("--max-shapes",),
    "--compute-capabilities": ("--compute-capability",),
    "--computeCapabilities": ("--compute-capability",),
    "--builder-optimization-level": ("--optimization-level",),
    "--builderOptimizationLevel": ("--optimization-level",),
    "--timingCacheFile": ("--timing-cache",),
    "--load-timing-cache": ("--timing-cache",),
    "--memPoolSize": ("--mem-pool-size",),
    "--plugins": ("--plugin",),
    "--staticPlugins": ("--plugin",),
    "--dynamicPlugins": ("--plugin",),
    "--noTF32": ("--no-tf32",),
    "--refittable": ("--refit",),
    "--strip-plan": ("--strip-weights",),
    "--stripWeights": ("--strip-weights",),
    "--allowWeightStreaming": ("--weight-streaming",),
    "--versionCompatible": ("--version-compatible",),
    "--excludeLeanRuntime": ("--exclude-lean-runtime",),
    "--hardware-compatibility-level": ("--hardware-compatibility",),
    "--hardwareCompatibilityLevel": ("--hardware-compatibility",),
    "--runtimePlatform": ("--runtime-platform",),
    "--useDLACore": ("--dla-core",),
    "--allowGPUFallback": ("--gpu-fallback",),
    "--allow-gpu-fallback": ("--gpu-fallback",),
    "--profilingVerbosity": ("--profiling-verbosity",),
    "--tacticSources": ("--tactic-sources",),
    "--maxAuxStreams": ("--max-aux-streams",),
    "--maxTactics": ("--max-tactics",),
    "--avgTiming": ("--avg-timing",),
    "--avg-timing-iterations": ("--avg-timing",),
    "--tilingOptimizationLevel": ("--tiling-level",),
    "--tiling-optimization-level": ("--tiling-level",),
    "--directIO": ("--direct-io",),
    "--saveEngine": ("--output",),
    "--override-input-shapes": ("--set-shape",),
    "--overwrite-input-shape": ("--set-shape",),
    "--toposort": ("--sort", "{}"),
    "--cleanup": ("--remove-dead", "{}"),
}
"""What users of Polygraphy, trtexec, onnxsim, onnxslim and sne4onnx type, where a command has that option.

They are not in a command's ``--help``, which shows what is best typed, but in docs/cli.md.
"""
_MODEL_OPTION = "--onnx"
"""How trtexec takes the model, which is the first argument here."""
_SIMPLER = "onnxbench edit IN OUT --clean folds constants and removes what is dead; --simplify onnxsim runs that tool."
_FASTER = "onnxbench run MODEL --bench 20 measures how fast a model or an engine is."
_HALF = "onnxbench precision IN OUT --to fp16 (or bf16) converts a model; onnxbench build-trt has this option."
_TYPED = "Types are in the model: onnxbench precision --keep-fp32 SEL."
_DRAWN = "--val-range [0,9], or x:[0,9], says what is drawn."
_BUILD_ONLY = "onnxbench build-trt only builds; onnxbench run ENGINE --bench 20 measures an engine."
_ELSEWHERE = {
    "surgeon": "Here they are commands: onnxbench extract, edit, expose, check.",
    "convert": "onnxbench build-trt makes engines, onnxbench precision converts to fp16.",
    "debug": "onnxbench bisect finds where a model drifts, onnxbench reduce the smallest part that fails.",
    "trtexec": "onnxbench build-trt takes its options, onnxbench run --bench measures; migrate reads scripts.",
    "polygraphy": "Its tools are commands here: onnxbench run, inspect, extract, edit, bisect, reduce, build-trt.",
    "template": "onnxbench edit takes recipes, onnxbench build-trt --config a YAML file; scripts are not made.",
    "simplify": _SIMPLER,
    "sanitize": _SIMPLER,
    "optimize": _SIMPLER,
    "onnxsim": _SIMPLER,
    "onnxslim": _SIMPLER,
    "benchmark": _FASTER,
    "bench": _FASTER,
    "profile": _FASTER,
    "perf": _FASTER,
    "compare": "onnxbench diff A B compares two models as graphs, onnxbench bisect A --against B by running them.",
    "visualize": "onnxbench show and inspect --nodes print a model; onnxbench bisect --report draws where it drifts.",
    "netron": "onnxbench show and inspect --nodes print a model; onnxbench bisect --report draws where it drifts.",
    "opset": "onnxbench edit IN OUT --set-opset 17 converts a model.",
    "version_converter": "onnxbench edit IN OUT --set-opset 17 converts a model.",
    "version": "onnxbench --version; onnxbench doctor lists all versions.",
    "help": "onnxbench COMMAND --help",
    "--onnxrt": "onnxbench run is on ONNX Runtime; onnxbench bisect compares it with others.",
    "--trt": "onnxbench build-trt makes an engine; onnxbench bisect --on trt compares with it.",
    "--fail-fast": "onnxbench bisect names the first node that goes wrong.",
    "--trt-outputs": "onnxbench build-trt makes an engine; onnxbench bisect --on trt compares with it.",
    "--gen-script": "onnxbench bisect --repro DIR and onnxbench reduce write a script with the model.",
    "--int-min": _DRAWN,
    "--int-max": _DRAWN,
    "--float-min": _DRAWN,
    "--float-max": _DRAWN,
    "--fp16": _HALF,
    "--bf16": _HALF,
    "--int8": "onnxbench quantize IN OUT --feeds DATA makes an int8 model.",
    "--layerPrecisions": _TYPED,
    "--layer-precisions": _TYPED,
    "--precisionConstraints": _TYPED,
    "--stronglyTyped": "Types are those of the model, unless --weakly-typed says otherwise.",
    "--strongly-typed": "Types are those of the model, unless --weakly-typed says otherwise.",
    "--tf32": "TF32 is on; --no-tf32 turns it off.",
    "--warmUp": "trtexec warms up for milliseconds; --warmup counts runs.",
    "--skipInference": _BUILD_ONLY,
    "--buildOnly": _BUILD_ONLY,
    "--useCudaGraph": _BUILD_ONLY,
    "--noDataTransfers": _BUILD_ONLY,
    "--duration": _BUILD_ONLY,
    "--avgRuns": _BUILD_ONLY,
    "--loadEngine": "onnxbench run ENGINE runs an engine, onnxbench inspect ENGINE shows what it is.",
    "--calib": "--calibration takes inputs to calibrate with, not a cache.",
    "--calibration-cache": "--calibration takes inputs to calibrate with, not a cache.",
    "--sarif": "--format sarif",
}
"""Commands and options of other tools that have no counterpart of the same kind: what does the same here."""
_VALUE_OPTIONAL = {"--save-external-data": "auto", "--external-data": "auto"}


def means_nothing_without(**companions: str | tuple[str, ...]) -> Callable[[F], F]:
    """Returns a decorator for a command: options (by parameter) that are refused if none of their companions is typed.

    An option that is ignored without a word looks like one that was heeded.
    """

    def decorate(command: F) -> F:
        wanted = {name: (by,) if isinstance(by, str) else by for name, by in companions.items()}
        command.__dict__["companions"] = wanted
        return command

    return decorate


_MISTYPED: Any = BadParameter.__bases__[0]  # click's UsageError, which typer has a copy of or not, by its version


def _told(error: Any, hint: str) -> UsageError:
    """Returns click's words on a mistake as every other mistake is told, with ``--json`` too."""
    said = error.format_message().rstrip(".")
    return UsageError(f"{said[:1].lower()}{said[1:]}", hint=hint)


class BenchGroup(TyperGroup):
    """The commands; a name that none of them has is answered with those that are near it."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Returns arguments and options, ``--help`` among them."""
        return _taken_plainly(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses what stands before the command."""
        if not args and self.no_args_is_help:
            return super().parse_args(ctx, args)
        try:
            return super().parse_args(ctx, args)
        except _MISTYPED as error:
            raise _told(error, "'onnxbench --help' shows what there is.") from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Returns the command's name, the command and the words behind it; raises UsageError if there is none."""
        names = self.list_commands(ctx)
        if args[0] not in names:
            hint = _ELSEWHERE.get(args[0]) or did_you_mean(args[0], names) or "'onnxbench --help' shows all commands."
            raise UsageError(f"no such command: {args[0]}", hint=hint)
        return super().resolve_command(ctx, args)


class BenchCommand(TyperCommand):
    """A typer command with argparse-style list options, and options that need others."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Returns arguments and options, ``--help`` among them."""
        return _taken_plainly(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Spreads list options into repeated ones, then parses as usual."""
        if not args and self.no_args_is_help:
            return super().parse_args(ctx, args)
        words = self._spread(self._in_first_names(args))
        TYPED.set(tuple(words))
        try:
            rest = super().parse_args(ctx, words)
        except _MISTYPED as error:
            raise _told(error, self.usage_hint(error)) from None
        self._require_companions(ctx)
        return rest

    def usage_hint(self, error: Exception) -> str:
        """Returns what helps against a mistake on the command line."""
        known = _ELSEWHERE.get(str(getattr(error, "option_name", "")))
        if known is not None:
            return known
        return f"'onnxbench {self.name} --help' shows what there is."

    def _in_first_names(self, args: list[str]) -> list[str]:
        """Puts second names of this command's options into the first ones, and gives values that may be left out."""
        options = {name for param in self.params for name in (*param.opts, *param.secondary_opts)}
        words: list[str] = []
        model: list[str] = []
        for at, word in enumerate(args):
            if word == "--":
                return [*model, *words, *args[at:]]
            if args[at - 1 : at] == [_MODEL_OPTION] and _MODEL_OPTION not in options:
                model.append(word)
                continue
            name, sign, value = word.partition("=")
            if name == _MODEL_OPTION and name not in options and (sign or args[at + 1 :]):
                model += [value] if sign else []
                continue
            first = SECOND_NAMES.get(name, ()) if name not in options else ()
            if first and first[0] in options:
                words += [f"{first[0]}{sign}{value}", *first[1:]]
                continue
            words.append(word)
            left_out = self.value_left_out(word) if word in options else None
            following = (args[at + 1 : at + 2] or ["-"])[0]
            if left_out is not None and (following.startswith("-") or following.endswith(".onnx")):
                words.append(left_out)
        return [*model, *words]

    def value_left_out(self, option: str) -> str | None:
        """Returns what an option means that no value follows; None if it needs one."""
        return _VALUE_OPTIONAL.get(option)

    def _require_companions(self, ctx: Any) -> None:
        """Raises UsageError for an option that was typed without one of those it is for."""
        given = {
            param.name
            for param in self.params
            if param.name and getattr(ctx.get_parameter_source(param.name), "name", "") == "COMMANDLINE"
        }
        for option, companions in getattr(self.callback, "companions", {}).items():
            if option in given and given.isdisjoint(companions):
                names = [self._typed_name(name) for name in companions[:4]]
                names += ["the like"] if len(companions) > len(names) else []
                raise UsageError(f"{self._typed_name(option)} means nothing without {' or '.join(names)}")

    def _typed_name(self, parameter: str) -> str:
        found = next(param for param in self.params if param.name == parameter)
        if isinstance(found, TyperOption):
            return next(name for name in found.opts if name.startswith("--"))
        return str(found.metavar).strip("[].")

    def _spread(self, args: list[str]) -> list[str]:
        """Repeats list options before each of their values, but for the last values where arguments are missing."""
        typed = self._sort_out(args)
        missing = self._required(args) - typed.positionals
        returned: list[str] = []
        if typed.lists and missing > 0:
            values = typed.lists[-1].values
            keep = max(1, len(values) - missing)
            returned = values[keep:]
            del values[keep:]
        spread: list[str] = []
        for item in typed.items:
            if isinstance(item, str):
                spread.append(item)
            else:
                spread += [part for value in item.values for part in (item.option, value)] or [item.option]
        return [*spread, *returned, *typed.rest]

    def _required(self, args: list[str]) -> int:
        """Returns how many arguments the command wants at least; ``-o`` stands for one where there are several."""
        every = [param for param in self.params if isinstance(param, TyperArgument)]
        arguments = [param for param in every if param.nargs == 1 or (param.nargs == -1 and param.required)]
        named_output = any(word in ("-o", "--output", "--doctor") or word.startswith("--output=") for word in args)
        return len(arguments) - (named_output and len(arguments) > 1)

    def _sort_out(self, args: list[str]) -> _Typed:
        """Tells list options with their values, other options with theirs, and arguments apart."""
        options = {
            name: param
            for param in self.params
            if isinstance(param, TyperOption)
            for name in (*param.opts, *param.secondary_opts)
        }
        words, typed = list(args), _Typed()
        while words:
            word = words.pop(0)
            if word == "--":
                typed.rest = [word, *words]
                typed.positionals += len(words)
                break
            name, attached = (word.split("=", 1)[0], "=" in word) if word.startswith("--") else (word, False)
            option = options.get(name)
            if option is None:
                typed.positionals += _is_value(word)
                typed.items.append(word)
            elif attached or option.is_flag or option.count:
                typed.items.append(word)
            elif option.multiple:
                values = []
                while words and _is_value(words[0]):
                    values.append(words.pop(0))
                typed.items.append(_List(name, values))
            else:
                typed.items += [word, *words[:1]]
                del words[:1]
        return typed


def _taken_plainly(params: list[Any]) -> list[Any]:
    for param in params:
        by_typer = getattr(param, "get_runtime_param", None)  # older typers have none, and do not use pydantic
        if by_typer is not None and not isinstance(by_typer, _Plainly):
            param.get_runtime_param = _Plainly(param.type_descriptor.annotation, by_typer)
    return params


class _Plainly:
    """Makes a ``str`` or a ``Path`` of a word, and leaves all else to typer.

    Typer loads pydantic for that, and even for options that nobody typed: half of what a short command takes to start.
    """

    def __init__(self, annotation: Any, by_typer: Callable[[], Any]) -> None:
        self._annotation, self._by_typer = annotation, by_typer

    def __call__(self) -> _Plainly:
        return self

    def coerce(self, value: Any, *, param: Any, ctx: Any) -> Any:
        """Returns what a parameter gets for what was typed, or for its default; as typer's own method does."""
        takes_several = param.multiple or param.nargs == -1
        if value is None:
            return () if takes_several else None
        if type(value) is self._annotation:  # a default, or text
            return value
        words = [*value] if takes_several and isinstance(value, (list, tuple)) else [value]
        if takes_several == isinstance(value, (list, tuple)) and all(isinstance(word, str) for word in words):
            if self._annotation == list[str]:
                return words
            if self._annotation == list[Path]:
                return [Path(word) for word in words]
            if self._annotation is Path:
                return Path(words[0])
        return self._by_typer().coerce(value, param=param, ctx=ctx)


@dataclass(slots=True)
class _List:
    """A list option as it was typed once, with the words behind it."""

    option: str
    values: list[str]


@dataclass(slots=True)
class _Typed:
    """The words behind a command's name.

    Attributes:
        items: All up to ``--``, in order; a list option with its values is one item.
        positionals: How many words are arguments.
        rest: ``--`` and what is behind it.
    """

    items: list[str | _List] = field(default_factory=list)
    positionals: int = 0
    rest: list[str] = field(default_factory=list)

    @property
    def lists(self) -> list[_List]:
        """The list options."""
        return [item for item in self.items if isinstance(item, _List)]


def _is_value(word: str) -> bool:
    """Tells whether a word is no option: ``-`` alone is standard input or output."""
    return not word.startswith("-") or word == "-"
