"""Golden cases of edits as data: a model before, a recipe, and the model after, or the error, as text.

    - name: an Add becomes a Sub
      before: |
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[4] a, float[4] b) => (float[4] y) { y = Add (a, b) }
      recipe:
        - set_op: {at: op:Add, to: Sub}
      after: |
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[4] a, float[4] b) => (float[4] y) { y = Sub (a, b) }

In place of ``after``, ``error: {kind: guard, says: expects one}`` says that the edit is refused, with which kind of
error and words of its message. ``verify: true`` also runs the model before and after each step. Teams can keep their
own recipes' cases so: ``for case in golden_cases(folder): check_golden(case)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onnxbench.documents import Item, from_yaml
from onnxbench.errors import BenchError
from onnxbench.model import Model
from onnxbench.modeltext import parse, show
from onnxbench.recipe import parse_recipe
from onnxbench.surgery import edit
from onnxbench.validity import validate

_KEYS = ("name", "before", "recipe", "after", "error", "verify")


@dataclass(frozen=True)
class GoldenCase:
    """One edit and what must come of it.

    Attributes:
        name: What it shows.
        before: The model in ONNX text.
        recipe: The recipe in YAML.
        after: The edited model in ONNX text, or None if the edit is refused.
        kind: The kind of the error that refuses it (``BenchError.kind``).
        says: Words of that error's message, details or hint.
        verify: Whether the model runs before and after each step.
        place: Where the case stands.
        folder: What files in the recipe are relative to.
    """

    name: str
    before: str
    recipe: Item
    after: str | None
    kind: str
    says: str
    verify: bool
    place: str
    folder: Path


def golden_cases(path: Path) -> Iterator[GoldenCase]:
    """Yields the cases of a YAML file, or of all in a folder by name.

    Raises:
        SpecError: A file has a mistake; the message names the line.
    """
    for file in sorted(path.glob("*.yaml")) if path.is_dir() else [path]:
        for item in from_yaml(file.read_text(encoding="utf-8"), str(file)).require_list("golden cases"):
            yield _case(item.require_map("a golden case", _KEYS), file)


def _case(item: Item, file: Path) -> GoldenCase:
    def text(key: str) -> str | None:
        found = item.get(key)
        return None if found is None else found.require_text(f"{key!r} of a golden case")

    before, after, error, recipe = text("before"), text("after"), item.get("error"), item.get("recipe")
    if before is None or recipe is None or (after is None) == (error is None):
        raise item.error("a golden case has before, recipe, and one of after and error")
    said = error.require_map("an error", ("kind", "says")) if error is not None else None
    kind, says = (said.get(key) if said is not None else None for key in ("kind", "says"))
    verify = item.get("verify")
    return GoldenCase(
        name=text("name") or f"line {item.line}",
        before=before,
        recipe=recipe,
        after=after,
        kind=kind.require_text("a kind") if kind is not None else "",
        says=says.require_text("words") if says is not None else "",
        verify=verify is not None and verify.text == "true",
        place=f"{file.name}:{item.line}",
        folder=file.parent,
    )


def check_golden(case: GoldenCase) -> None:
    """Applies the recipe of a case and compares.

    Raises:
        AssertionError: The result, or the error, is another one than the case says.
    """
    model = parse(case.before, source=f"{case.place} before")
    untouched = model.proto.SerializeToString(deterministic=True)
    try:
        recipe = parse_recipe(case.recipe, folder=case.folder)
        done = edit(model, recipe, verify=case.verify, stamp=False)
    except BenchError as error:
        if case.after is not None:
            raise AssertionError(f"{case.place}: {case.name}: refused: {error}") from error
        if case.kind and error.kind != case.kind:
            raise AssertionError(f"{case.place}: a {error.kind} error, expected {case.kind}: {error}") from error
        if case.says not in str(error):
            raise AssertionError(f"{case.place}: {str(error)!r} does not say {case.says!r}") from error
        return
    finally:
        assert model.proto.SerializeToString(deterministic=True) == untouched, f"{case.place}: the model was changed"
    if case.after is None:
        raise AssertionError(f"{case.place}: {case.name}: not refused; the result is\n{_text(done.model)}")
    validate(done.model.proto)
    expected, found = _text(parse(case.after, source=f"{case.place} after")), _text(done.model)
    if expected != found:
        raise AssertionError(f"{case.place}: {case.name}: expected\n{expected}\nfound\n{found}")
    if not done.passed:
        raise AssertionError(f"{case.place}: {case.name}: a step changes more of the results than it may")


def _text(model: Model) -> str:
    return show(model, weights="inline")
