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

``assert_rewrite`` tests a rewrite of PyTorch code: original against rewritten, in PyTorch and on the real backend.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench.documents import Item, from_yaml
from onnxbench.drift import Tolerance, compare_all, summarize
from onnxbench.errors import BenchError
from onnxbench.model import Model, load
from onnxbench.modeltext import parse, show
from onnxbench.recipe import parse_recipe
from onnxbench.surgery import edit
from onnxbench.validity import validate

if TYPE_CHECKING:
    from onnxbench.engine import BuildSpec
    from onnxbench.pytorch.exporting import Exported

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


# ---------------------------------------------------------------- rewrites of PyTorch code

_RUNTIMES = {"default": "ort", "onnxruntime": "ort", "reference": "reference"}


def assert_rewrite(
    module: Any,
    rewrite: Any,
    inputs: Any,
    backend: str = "onnxruntime",
    *,
    exporter: str = "torch.export",
    opset: int | None = None,
    dynamic: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    tolerance: Tolerance | None = None,
    in_pytorch: bool = True,
    run_inputs: Any = None,
    spec: BuildSpec | None = None,
) -> Exported:
    """Returns the export of a rewritten module, once it is shown to compute what the original does.

    The original runs in PyTorch; the rewritten module runs there too; the exported file runs on the backend: ONNX
    Runtime, or the reference evaluator. For ``tensorrt`` an engine is built of the file, and the file runs in ONNX
    Runtime as far as that has its operators. Each is compared with the original.

    Args:
        module: The module; it is as it was afterwards.
        rewrite: A rewrite, a file of them, or a list (see ``RewriteContext``).
        inputs: A tensor, a tuple of them, or a dict by keyword.
        backend: ``onnxruntime``, ``reference``, ``tensorrt``, or ``default`` (which runs in ONNX Runtime). Rewrites are
            chosen for it; those for ``reference`` are those for ``default``.
        exporter: ``torch.export`` or ``torchscript``.
        opset: The opset of the file.
        dynamic: Open dimensions, as ``ExportOptions.dynamic``.
        config: What rewrites get as ``ctx.config``.
        tolerance: What is allowed; None: by element type.
        in_pytorch: Whether the rewritten module runs in PyTorch: not where it calls an operator that only the backend
            has.
        run_inputs: Inputs for the backend, if they are others than those of the export: of another size, say.
        spec: How the engine is built; None: for the GPU here, or for any where there is none.

    Raises:
        AssertionError: Results differ, or a rewrite was never used.
        BenchError: The module cannot be exported, or the backend refuses the file.
    """
    from onnxbench.pytorch.exporting import ExportOptions, export
    from onnxbench.pytorch.rewrite_context import RewriteContext
    from onnxbench.pytorch.sources import source_of

    rewrites = rewrite if isinstance(rewrite, (list, tuple)) else [rewrite]
    chosen = "default" if backend == "reference" else backend
    module.eval()
    source = source_of((module, inputs)).in_order()
    runs = source if run_inputs is None else source_of((module, run_inputs)).in_order()
    expected = _leaves(runs.call())
    if in_pytorch:
        with RewriteContext(module, backend=chosen, config=config, rewrites=rewrites, opset=opset) as context:
            rewritten = _leaves(source_of((context.module, inputs)).in_order().call())
        _require_equal(_leaves(source.call()), rewritten, tolerance, "the rewritten module in PyTorch")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rewritten.onnx"
        options = ExportOptions(
            exporter=exporter, opset=opset, dynamic=dynamic, rewrites=rewrites, backend=chosen,
            rewrite_config=config or {}, verify=False,
        )  # fmt: skip
        done = export((module, source.args, dict(source.kwargs)), file, options=options)
        unused = [each.sentence() for each in done.findings if each.kind == "unused-rewrite"]
        if unused or not done.rewrites:
            raise AssertionError("\n".join(unused) or f"no rewrite is for {chosen}")
        made = load(file)
        if backend == "tensorrt":
            _build(file, Path(folder), spec)
            if any(node.domain not in ("", "ai.onnx") for node in made.proto.graph.node):
                return done
        got = _run(made, _RUNTIMES.get(backend, "ort"), runs)
        _require_equal(expected, got, tolerance, f"the exported file in {backend}")
    return done


def _leaves(result: Any) -> list[Any]:
    from onnxbench.pytorch._verification import tensors_of

    return tensors_of(result)


def _run(model: Model, runtime: str, source: Any) -> list[Any]:
    from onnxbench import backends
    from onnxbench.pytorch._verification import as_array

    by_name = {leaf.name: leaf.value for leaf in source.leaves()}
    session = backends.open_session(model, runtime, options=backends.Options("none"))
    try:
        made = session.run({port.name: as_array(by_name[port.name]) for port in session.inputs})
        return [made[port.name] for port in session.outputs]
    finally:
        session.close()


def _require_equal(expected: list[Any], got: list[Any], tolerance: Tolerance | None, what: str) -> None:
    if len(expected) != len(got):
        raise AssertionError(f"{what} has {len(got)} results, and the original {len(expected)}")
    report = compare_all(
        {f"output {at}": value for at, value in enumerate(expected)},
        {f"output {at}": value for at, value in enumerate(got)},
        tolerance=tolerance,
    )
    if not report.passed:
        raise AssertionError("\n  ".join([f"{what} computes something else:", *summarize(report)]))


def _build(file: Path, folder: Path, spec: BuildSpec | None) -> None:
    from onnxbench.engine import BuildSpec, build_engine

    build_engine(file, folder / "rewritten.engine", spec or BuildSpec())
