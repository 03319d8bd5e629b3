"""The flags of ``onnxbench edit`` that are operations, and how an edit is shown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench.cli._command import TYPED, BenchCommand
from onnxbench.cli._render import chosen, note, print_json
from onnxbench.cli._tables import plain
from onnxbench.errors import UsageError
from onnxbench.wording import plural

if TYPE_CHECKING:
    from onnxbench.draft import Change
    from onnxbench.drift import DriftReport
    from onnxbench.recipe import Recipe, Step
    from onnxbench.surgery import DoneStep, EditedFile
    from onnxbench.writer import SaveOptions

STEP = "--step"
_SHOWN = 20


class EditCommand(BenchCommand):
    """A command with ``--step``, and one flag like it for each operation of ``onnxbench.operations``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Adds the flags, which are looked up only when the command is used, and parses as usual."""
        known = {name for param in self.params for name in param.opts}
        general = next(param for param in self.params if STEP in param.opts)
        self.params += [option for option in _operation_options(general) if known.isdisjoint(option.opts)]
        return super().parse_args(ctx, args)

    def usage_hint(self, error: Exception) -> str:
        """Returns how an operation is written that needs nothing to be said, where its flag stands alone."""
        from onnxbench.operations import OPERATIONS
        from onnxbench.recipe import needs_fields

        flag = str(getattr(error, "option_name", ""))
        operation = OPERATIONS.get(flag.removeprefix("--").replace("-", "_"))
        if operation is not None and not needs_fields(operation):
            return f"{flag} '{{}}' stands for its defaults."
        return super().usage_hint(error)


def _operation_options(general: Any) -> Iterator[Any]:
    """Yields an option like ``--step`` for each operation; what it is given is looked up in ``TYPED``, in order."""
    from onnxbench.operations import OPERATIONS, spelled_form

    for word, operation in OPERATIONS.items():
        option = copy(general)
        option.name, option.opts, option.expose_value = f"operation_{word}", [f"--{word.replace('_', '-')}"], False
        option.metavar = spelled_form(operation) or "{...}"
        option.help = (operation.__doc__ or "").strip().splitlines()[0]
        yield option


def one_target(out: Path | None, short: Path | None, *, dry_run: bool) -> Path | None:
    """Returns the file to write, of OUT and ``-o``; None for a dry run."""
    if dry_run and (out is None or short is None):
        return None
    return required_target(out, short, instead=", or use --dry-run")


def required_target(out: Path | None, short: Path | None, *, instead: str = "") -> Path:
    """Returns the file to write, of OUT and ``-o``; ``instead`` says what else can be done, for the hint."""
    if out is not None and short is not None:
        raise UsageError(f"two files to write are named: {out} and {short}")
    target = out or short
    if target is None:
        raise UsageError("no file to write is named", hint=f"Give OUT after the model (or -o OUT){instead}.")
    return target


def refuse_idle(dry_run: bool, save_recipe: Path | None, save_undo: Path | None) -> None:
    """Raises UsageError if files are to be written beside a model that is not."""
    for flag, path in (("--save-recipe", save_recipe), ("--save-undo", save_undo)):
        if dry_run and path is not None:
            raise UsageError(f"{flag} writes {path}, and --dry-run writes nothing", hint="Leave one of them out.")


def typed_steps(expect: str | None) -> list[Step]:
    """Returns the steps that the flags on the command line mean, in the order in which they were typed."""
    from onnxbench.operations import OPERATIONS
    from onnxbench.recipe import step_from_flag, step_from_text

    flags = {f"--{word.replace('_', '-')}": word for word in OPERATIONS}
    words, steps = iter(TYPED.get()), []
    for typed in words:
        name, attached, value = typed.partition("=")
        if name in flags or name == STEP:
            text = value if attached else next(words)
            steps.append(step_from_flag(flags[name], text, expect=expect) if name in flags else step_from_text(text))
    return steps


def whole_recipe(
    files: Sequence[Path], variables: Sequence[str], expect: str | None, *, allow_outside: bool
) -> Recipe:  # fmt: skip
    """Returns the recipes of some files and the flags after them as one recipe."""
    from onnxbench.documents import from_yaml
    from onnxbench.recipe import Recipe, load_recipe, to_python

    given = {}
    for text in variables:
        name, found, value = text.partition("=")
        if not found:
            raise UsageError(f"--var {text!r} gives no value", hint="--var scale=2")
        given[name] = to_python(from_yaml(value, f"--var {name}")) if value else ""
    if given and not files:
        raise UsageError("--var gives values to the variables of a recipe, and there is no --recipe")
    loaded = [load_recipe(file, variables=given, allow_outside=allow_outside) for file in files]
    steps = tuple(step for recipe in loaded for step in recipe.steps) + tuple(typed_steps(expect))
    if not steps:
        raise UsageError("nothing is to be done", hint="Give --recipe FILE, or a step: --set-op op:Add=Sub.")
    files = tuple(file for recipe in loaded for file in recipe.files)
    return Recipe(steps, loaded[0].description if len(loaded) == 1 else "", files)


def ask() -> Callable[[Step, Sequence[Change]], bool]:
    """Returns what asks the user of each step: yes, no, all that follow, or stop."""
    state = {"all": False, "asked": 0}

    def approve(step: Step, changes: Sequence[Change]) -> bool:
        if state["all"]:
            return True
        state["asked"] += 1
        print(f"step {state['asked']}: {plain(step.title())}", file=sys.stderr)
        for line in _lines(changes):
            print(f"  {line}", file=sys.stderr)
        while True:
            print("apply? [y]es, [n]o, [a]ll that follow, [q]uit: ", end="", file=sys.stderr, flush=True)
            answer = sys.stdin.readline().strip().lower()
            if answer in ("y", "yes", "a", "all"):
                state["all"] = answer.startswith("a")
                return True
            if answer in ("n", "no"):
                return False
            if answer in ("q", "quit", ""):
                raise KeyboardInterrupt

    return approve


def refuse_with_undo(flags: Iterable[str]) -> None:
    """Raises UsageError if flags were given that are about the steps of an edit."""
    given = " and no ".join(flags)
    if given:
        raise UsageError(f"--undo goes back, and takes no {given}", hint="Edit the result by a second command.")


def undo(
    model: Path, target: Path | None, patch: Path, options: SaveOptions, *, allow_outside: bool, as_json: bool
) -> None:
    """Undoes an edit and prints what was written, if there is a file to write."""
    from onnxbench import surgery

    if typed_steps(None):
        raise UsageError("--undo goes back, and takes no steps", hint="Edit the result by a second command.")
    saved = surgery.undo_file(model, target, patch, options=options, allow_outside=allow_outside)
    if as_json:
        print_json("edit", {"saved": saved, "undone": patch})
    elif saved is None:
        print(f"{patch} leads back from {model}; nothing was written (--dry-run)")
    else:
        print(f"undone; wrote {saved.path}")


def print_edited(done: EditedFile, *, dry_run: bool, as_json: bool, quiet: bool, command: str = "edit") -> None:
    """Prints what an edit did."""
    edited = done.edited
    if as_json:
        print_json(command, done)
        return
    note(*edited.repairs, *chosen(edited.choices), quiet=quiet)
    for number, step in enumerate(edited.steps, 1):
        for line in _step_lines(number, step):
            print(line)
        note(*step.notes, quiet=quiet)
    changes = plural(len(edited.changes), "change")
    if dry_run:
        print(f"{changes}; nothing was written (--dry-run)")
    elif done.saved is None:
        print("nothing was written: a step changes more than it may")
        note("atol: or rtol: of the step allow a difference, changes: numerics allows any", quiet=quiet)
    else:
        print(f"{changes}; wrote {done.saved.path}")
    for path in filter(None, (done.recipe, done.undo)):
        print(f"wrote {path}")


def _step_lines(number: int, step: DoneStep) -> list[str]:
    matched = "" if step.matched is None else f", {step.matched} matched"
    head = f"step {number}: {plain(step.step.title())}{matched}"
    if step.drift is not None:
        judged = "ok" if step.passed else "NOT ALLOWED"
        head += f"; verified: {_drift_words(step.drift)} ({judged})"
    return [head, *(f"  {line}" for line in _lines(step.changes) or ["no change"])]


def _drift_words(drift: DriftReport) -> str:
    if drift.bitwise_equal:
        return "equal bit for bit"
    worst = max(drift.tensors, key=lambda each: each.max_abs or 0.0)
    if worst.max_abs:
        return f"differs, max abs {worst.max_abs:g} in {plain(worst.name)}"
    failing = next((each for each in drift.tensors if not each.passed), None)
    return "the values are equal" if failing is None else f"{plain(failing.name)}: {plain(failing.reason)}"


def _lines(changes: Sequence[Change]) -> list[str]:
    lines = [plain(change.sentence()) for change in changes[:_SHOWN]]
    if len(changes) > _SHOWN:
        lines.append(f"... and {len(changes) - _SHOWN} more (--json lists all)")
    return lines
