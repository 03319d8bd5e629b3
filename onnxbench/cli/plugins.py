"""``onnxbench plugins``: custom operators that engines can be built with."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnxbench.cli._building import EngineName
from onnxbench.cli._options import AsJson, Quiet

if TYPE_CHECKING:
    from onnxbench.bundles import Plugin

_ACTIONS = ("list", "show", "test", "compile", "new", "export")


def plugins(
    action: Annotated[str, typer.Argument(metavar="ACTION", help="list, show, test, compile, new, or export.")],
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PLUGIN]...", help="Folders of bundles, files, or names that are known.", show_default=False
        ),
    ] = None,
    op: Annotated[
        str | None,
        typer.Option("--op", metavar="DOMAIN::OP", help="With new: the operator's name.", show_default=False),
    ] = None,
    cpp: Annotated[bool, typer.Option("--cpp", help="With new: also the plugin in C++, in the folder cpp.")] = False,
    engine: EngineName = None,
    tensorrt: Annotated[
        bool, typer.Option("--tensorrt", help="With list: also the plugins that TensorRT itself has.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List, show, test, compile, make and export plugins: custom operators, each defined once in a bundle.

    A bundle is a folder with plugin.py (names, shape function, NumPy reference, test cases) and kernel.cu. 'test' holds
    its parts against each other, the device code run on the CPU among them, and builds engines if TensorRT is
    installed; exit code 1 if a test fails. 'export BUNDLE FOLDER' writes it as C++: a plugin library for TensorRT
    around the same kernel, with CMake. Bundles are known by name if they come along, if ONNXBENCH_PLUGIN_PATH names a
    folder of them, or if an installed package offers them. Showing, testing and building run a plugin's code.

    \b
    Examples:
      onnxbench plugins list --tensorrt
      onnxbench plugins new plugins/my_op --op my.domain::MyOp
      onnxbench plugins compile plugins/my_op
      onnxbench plugins test plugins/my_op
      onnxbench plugins export plugins/my_op my_op_cpp
      onnxbench plugins show plugins/my_op libmine.so
    """
    from onnxbench.bundles import discover, find_plugins
    from onnxbench.errors import UsageError, did_you_mean

    words = names or []
    if action not in _ACTIONS:
        hint = did_you_mean(action, _ACTIONS) or f"One of {', '.join(_ACTIONS)}."
        raise UsageError(f"{action!r} is no action", hint=hint)
    if not words and action != "list":
        raise UsageError(f"'plugins {action}' needs the name of a plugin")
    if op is not None and action != "new":
        raise UsageError("--op means nothing without 'plugins new'")
    if cpp and action != "new":
        raise UsageError("--cpp means nothing without 'plugins new'", hint="'plugins export BUNDLE FOLDER' writes it.")
    if action == "new":
        _new(words, op, cpp=cpp, quiet=quiet)
    elif action == "export":
        _export(words)
    elif action == "list":
        _list([*find_plugins(words), *discover()], engine, tensorrt=tensorrt, as_json=as_json)
    elif action == "compile":
        _compile(find_plugins(words))
    elif action == "show":
        _show(find_plugins(words), engine, as_json=as_json)
    elif not _test(find_plugins(words), engine, as_json=as_json):
        raise typer.Exit(1)


def _export(words: list[str]) -> None:
    from onnxbench.bundles import export_cpp, load_bundles
    from onnxbench.errors import UsageError

    if len(words) != 2:
        raise UsageError("'plugins export' needs a bundle and a new folder")
    found, folder = load_bundles(words[:1]), Path(words[1])
    for bundle in found:
        for file in export_cpp(bundle, folder if len(found) == 1 else folder / bundle.name):
            print(file)


def _new(words: list[str], op: str | None, *, cpp: bool, quiet: bool) -> None:
    import shutil

    from onnxbench.bundles import export_cpp, load_bundle, make_skeleton
    from onnxbench.cli._render import note

    for word in words:
        folder = Path(word)
        title = "".join(part.capitalize() for part in folder.name.replace("-", "_").split("_"))
        # 'plugins new MyOp', as build-trt's hint says, keeps the operator's name as it is
        files = make_skeleton(folder, op or (folder.name if folder.name[:1].isupper() else title))
        if op is None or "::" not in op:
            note(f"{folder}: the domain is 'custom'; --op my.domain::MyOp names another", quiet=quiet)
        if shutil.which("nvcc"):
            from onnxbench.bundles import compile_ptx

            files.append(compile_ptx(load_bundle(folder)))
        else:
            note("there is no nvcc: 'onnxbench plugins compile' makes kernel.ptx where there is one", quiet=quiet)
        if cpp:
            files += export_cpp(load_bundle(folder), folder / "cpp")
        for file in files:
            print(file)


def _list(found: list[Plugin], engine: str | None, *, tensorrt: bool, as_json: bool) -> None:
    from onnxbench.cli._render import print_json
    from onnxbench.engine import creators

    built_in: list[Any] = creators(engine)["creators"] if tensorrt else []
    if as_json:
        said = [{**asdict(plugin), "operators": plugin.operators()} for plugin in found]
        print_json("plugins", {"plugins": said, "tensorrt": built_in})
        return
    for plugin in found:
        print(f"{plugin.name}  {plugin.kind}  {plugin.path}  ({plugin.origin})")
        for each in plugin.operators():
            types = f": {', '.join(each.dtypes)}" if each.dtypes else ""
            also = f"; also {', '.join(each.aliases)}" if each.aliases else ""
            print(f"  {each.domain}::{each.op} version {each.version}{types}{also}")
    for namespace, name, version in built_in:
        print(f"{namespace + '::' if namespace else ''}{name}  version {version}  (TensorRT)")
    if not found and not built_in:
        print("no plugins are known; ONNXBENCH_PLUGIN_PATH names folders with bundles")


def _compile(found: list[Plugin]) -> None:
    from onnxbench.bundles import compile_ptx, read_bundles

    for plugin in found:
        for bundle in read_bundles(plugin.path):
            print(compile_ptx(bundle))


def _show(found: list[Plugin], engine: str | None, *, as_json: bool) -> None:
    from onnxbench.cli._render import print_json
    from onnxbench.engine import describe_plugin

    shown = [describe_plugin(plugin, engine) for plugin in found]
    if as_json:
        print_json("plugins", shown)
        return
    for fields in shown:
        for name, value in fields.items():
            print(f"{name}: {value}")
        print()


def _test(found: list[Plugin], engine: str | None, *, as_json: bool) -> bool:
    from onnxbench.cli._render import print_json
    from onnxbench.proving import prove_plugin

    outcomes = {plugin.name: prove_plugin(plugin.path, engine=engine) for plugin in found}
    if as_json:
        print_json("plugins", outcomes)
    else:
        words = {True: "passed", False: "FAILED", None: "not run"}
        for name, tests in outcomes.items():
            for outcome in tests:
                print(f"{name}: {words[outcome.passed]:8} {outcome.name}: {outcome.detail}")
    return all(outcome.passed is not False for tests in outcomes.values() for outcome in tests)
