"""Conversion to fp16 and bf16, side by side with other tools: valid, right, wrong values, refused, Casts added.

    python benchmarks/precision.py [--to fp16] [--node | --torch FOLDER] [--match WORD] [--tools NAME,...] [MODELS...]

Without models: .corpus/*.onnx. ``--node`` takes the float models of onnx's backend data in their place, on the inputs
that come with them; ``--torch`` the models of ``exporting.py``, exported to that folder unless they are there.

Valid means the full onnx checker with strict type inference. Values are compared on one set of inputs: wrong is a
difference of more than 5 % of the largest value, another pattern of Inf and NaN, or one integer in twenty that is off
by more than one. Where the float32 model is wrong in the same sense once weights and the output of every node are
rounded to the type (``onnxbench.tuning``), the type itself is at fault, and that is counted apart as ``range``.

What runs a model (``RUNNERS``) runs the float32 model too. fp16: ONNX Runtime, and for backend data onnx's reference
evaluator where that has no kernel. bf16: for backend data the reference evaluator; where that does not run the result,
or adds up in bfloat16 and is wrong, ONNX Runtime on the form of it that ``bfloat16.in_float32`` makes, since it has
hardly any kernels for bfloat16.

Each tool works in a process of its own, so one that crashes or hangs is one verdict. Its result has the types that it
gave the inputs and outputs; feeds are cast to these.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import multiprocessing
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from bfloat16 import in_float32

from onnxbench import backends, model
from onnxbench.errors import BenchError
from onnxbench.feeding import FeedOptions, first_set
from onnxbench.graph import GraphIndex
from onnxbench.inference import TypeFinder
from onnxbench.model import Model
from onnxbench.opsets import convert_opset, standard_opset
from onnxbench.precision import convert
from onnxbench.precision._headroom import largest_value
from onnxbench.tuning._emulation import BFLOAT16, FLOAT16, RANDOM, Emulation, round_feeds
from onnxbench.validity import find_complaints

Feeds = dict[str, Any]
_WRONG = 0.05
_LARGEST = 200 << 20
_SECONDS = 180
_RUN = backends.Options(optimization="none")
"""Without optimizations: those of ONNX Runtime 1.32 crash on one of the models."""
VERDICTS = ("right", "valid", "range", "wrong", "no run", "invalid but right", "invalid", "refused", "crashed")
SOUND = VERDICTS[:4]
"""Verdicts on valid results that run."""
_FIRST_OPSET_WITH_BFLOAT16 = 13
_TRAINING_MODE = 2  # input of Dropout
KNOWN: dict[str, FeedOptions] = {
    "ppocr_v4_rec": FeedOptions(shapes=["x:1x3x48x320"]),
    **dict.fromkeys(
        ("silero_vad", "silero_vad_16k_op15", "silero_vad_ifless"),
        FeedOptions(shapes=["input:1x576", "state:2x1x128"], ranges=["sr:[16000,16000]"]),
    ),
    "tashkeel_seq2seq": FeedOptions(
        shapes=["char_inputs:1x16", "diac_inputs:1x16"], ranges=["char_inputs:[1,9]", "input_lengths:[16,16]"]
    ),
}
"""What users of a model know of its inputs and its file does not say."""
FLOATS = {1, 10, 11, 16}
"""The element types that a conversion goes from."""
_NUMBERS = {"fp16": FLOAT16, "bf16": BFLOAT16}


def ours(proto: onnx.ModelProto, to: str) -> onnx.ModelProto:
    """Converts with onnxbench, weights that do not fit clamped."""
    return whole(convert(model.from_proto(proto), to=to, weights="clamp").model)


def runtime(proto: onnx.ModelProto, to: str) -> onnx.ModelProto:
    """Converts with ONNX Runtime's copy of convert_float_to_float16."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(proto, keep_io_types=True)


def common(proto: onnx.ModelProto, to: str) -> onnx.ModelProto:
    """Converts with onnxconverter-common."""
    from onnxconverter_common.float16 import convert_float_to_float16

    return convert_float_to_float16(proto, keep_io_types=True)


def onnxsim(proto: onnx.ModelProto, to: str) -> onnx.ModelProto:
    """Converts with onnxsim, without simplifying."""
    import onnxsim

    return onnxsim.quantize_fp16(proto) if to == "fp16" else onnxsim.quantize_bf16(proto)


def onnxslim(proto: onnx.ModelProto, to: str) -> onnx.ModelProto:
    """Converts with onnxslim, which goes through onnxconverter-common and leaves no choice for inputs and outputs."""
    import onnxslim

    return onnxslim.slim(proto, dtype=to)


def autocast(proto: onnx.ModelProto, to: str) -> onnx.ModelProto:
    """Converts with NVIDIA's AutoCast as its command does: nodes whose values are large on random inputs stay."""
    from modelopt.onnx.autocast import convert_to_mixed_precision

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(proto, path)
        return convert_to_mixed_precision(str(path), low_precision_type=to, keep_io_types=True)


def modelopt(proto: onnx.ModelProto, to: str) -> onnx.ModelProto:
    """Converts with AutoCast's plain conversion, which keeps no nodes."""
    from modelopt.onnx.autocast.convert import convert_to_f16

    return convert_to_f16(proto, low_precision_type=to, keep_io_types=True)


Tool = Callable[[onnx.ModelProto, str], onnx.ModelProto]
TOOLS: dict[str, tuple[str, Tool, tuple[str, ...]]] = {
    "onnxbench": ("onnxbench", ours, ("fp16", "bf16")),
    "onnxruntime": ("onnxruntime.transformers.float16", runtime, ("fp16",)),
    "onnxconverter-common": ("onnxconverter_common.float16", common, ("fp16",)),
    "onnxsim": ("onnxsim", onnxsim, ("fp16", "bf16")),
    "onnxslim": ("onnxslim", onnxslim, ("fp16",)),
    "AutoCast": ("modelopt.onnx.autocast", autocast, ("fp16", "bf16")),
    "AutoCast's convert_to_f16": ("modelopt.onnx.autocast", modelopt, ("fp16", "bf16")),
}  # fmt: skip
"""Each tool with the module that must be there, what converts, and the types that it converts to."""


def by_runtime(proto: onnx.ModelProto, feeds: Feeds) -> Feeds:
    """Runs a model in ONNX Runtime."""
    return backends.open_session(model.from_proto(proto), options=_RUN).run(feeds)


def by_reference(proto: onnx.ModelProto, feeds: Feeds) -> Feeds:
    """Runs a model in onnx's reference evaluator."""
    return backends.open_session(model.from_proto(proto), "reference").run(feeds)


def by_rounding(proto: onnx.ModelProto, feeds: Feeds) -> Feeds:
    """Runs a bfloat16 model in ONNX Runtime, in float32 with what each node makes rounded."""
    return backends.open_session(in_float32(proto), options=_RUN).run(feeds)


RUNNERS: dict[str, Callable[[onnx.ModelProto, Feeds], Feeds]] = {
    "runtime": by_runtime, "reference": by_reference, "rounding": by_rounding,
}  # fmt: skip
WANTED = {
    ("fp16", False): ("runtime",), ("fp16", True): ("runtime", "reference"),
    ("bf16", False): ("rounding",), ("bf16", True): ("reference", "rounding"),
}  # fmt: skip
"""What runs the results, by type and whether they are of backend data; one that agrees is enough."""


@dataclass(frozen=True)
class Case:
    """A model to convert.

    Attributes:
        data: The model, serialized, with all its weights.
        to: The type.
        feeds: Inputs to run it on; None where values are not compared.
        expected: What it makes of them, by what ran it.
        casts: How many Casts it has.
    """

    data: bytes
    to: str
    feeds: Feeds | None
    expected: dict[str, Feeds]
    casts: int


@dataclass
class Tally:
    """What became of the models of one tool.

    Attributes:
        verdicts: How many have each verdict.
        idle: How many of the sound ones have nothing of the new type.
        casts: How many Casts the tool added to them all.
        more: How many of its sound results have more Casts than the first tool's, if both have the type.
        fewer: How many have fewer.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    idle: int = 0
    casts: int = 0
    more: int = 0
    fewer: int = 0


class Worker:
    """A process that converts and judges, replaced when it dies or hangs."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._pool: ProcessPoolExecutor | None = None

    def ask(self, function: Callable[..., Any], *given: object) -> Any:
        """Returns what a function returns there; None if it took the process with it, or too long."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, mp_context=self._context)
        try:
            return self._pool.submit(function, *given).result(timeout=_SECONDS)
        except (BrokenProcessPool, TimeoutError):
            self.close()
            return None

    def close(self) -> None:
        """Ends the process."""
        if self._pool is not None:
            for process in list((self._pool._processes or {}).values()):
                process.kill()
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


@dataclass(frozen=True)
class Outcome:
    """What became of a model.

    Attributes:
        verdict: One of ``VERDICTS``.
        words: More of it.
        casts: How many Casts were added.
        is_converted: Whether it has something of the new type.
    """

    verdict: str
    words: str = ""
    casts: int = 0
    is_converted: bool = False

    @property
    def counts(self) -> bool:
        """Whether its Casts say something."""
        return self.verdict in SOUND and self.is_converted


def attempt(tool: str, case: Case) -> Outcome:
    """Has a tool convert a model, and judges what it made."""
    onnxruntime.set_default_logger_severity(4)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    proto = onnx.ModelProto.FromString(case.data)
    try:
        made = TOOLS[tool][1](proto, case.to)
    except Exception as error:  # whatever a tool raises counts as its refusal
        return Outcome("refused", str(error).strip().split("\n")[0][:160])
    verdict, words = judge(made, case)
    is_converted = verdict in SOUND and _NUMBERS[case.to] in element_types(made)
    return Outcome(verdict, words, casts(made) - case.casts, is_converted)


def whole(source: Model) -> onnx.ModelProto:
    """Returns a model with all its weights in it."""
    from onnxbench import weights

    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    for tensor in weights.tensors(proto):
        if weights.is_outside(tensor):
            where = source.byte_range(tensor)
            assert where is not None
            data = weights.read_bytes(where)
            weights.clear_data(tensor)
            tensor.raw_data = data
    return proto


def backend_tests() -> Iterator[tuple[str, Model, Feeds | None]]:
    """Yields the models of onnx's backend data that have floats, with the inputs that come with them."""
    from onnx.backend.test.case.node import collect_testcases
    from onnx.backend.test.loader import DATA_DIR

    for case in sorted(collect_testcases(None), key=lambda each: each.name):
        if FLOATS & element_types(case.model):
            given = case.data_sets[0][0] if case.data_sets else []
            yield case.name, model.from_proto(case.model), feeds_of(case.model, given)
    for path in sorted(Path(DATA_DIR).glob("*/*/model.onnx")):
        proto = onnx.load(path)
        if FLOATS & element_types(proto):
            files = sorted(path.parent.glob("test_data_set_0/input_*.pb"), key=lambda each: int(each.stem[6:]))
            tensors = [onnx.TensorProto.FromString(each.read_bytes()) for each in files]
            is_plain = all(info.type.HasField("tensor_type") for info in proto.graph.input)
            yield path.parent.name, model.load(path), feeds_of(proto, tensors) if is_plain else None


def element_types(proto: onnx.ModelProto) -> set[int]:
    """Returns the element types of the inputs of a model's graphs and of what their nodes make."""
    index = GraphIndex(proto)
    finder = TypeFinder(model.from_proto(proto), index)
    found: set[int] = set()
    for scope in index.scopes:
        kinds = finder.find(scope, [*scope.inputs, *(name for names in scope.writes for name in names)])
        found.update(int(number) for kind in kinds.values() for number in re.findall(r"elem_type: (\d+)", str(kind)))
    return found


def feeds_of(proto: onnx.ModelProto, given: Sequence[Any]) -> Feeds | None:
    """Returns values for the inputs of a model; None if there are none for some."""
    values = [
        onnx.numpy_helper.to_array(each) if isinstance(each, onnx.TensorProto) else each for each in given
    ]  # fmt: skip
    names = [info.name for info in proto.graph.input]
    stored = {each.name for each in proto.graph.initializer}
    if len(values) < len(names):
        names = [name for name in names if name not in stored]
    return dict(zip(names, values, strict=True)) if len(values) == len(names) else None


def is_random(proto: onnx.ModelProto) -> bool:
    """Tells whether two runs of a model may differ."""
    return any(
        ref.node.op_type in RANDOM or (ref.node.op_type == "Dropout" and len(ref.node.input) > _TRAINING_MODE)
        for ref in GraphIndex(proto).nodes()
    )


def judge(made: onnx.ModelProto, case: Case) -> tuple[str, str]:
    """Returns one of ``VERDICTS``, and more words."""
    complaints = find_complaints(made)
    words = complaints[0][:160] if complaints else ""
    if case.feeds is None or not case.expected:
        return ("invalid", words) if complaints else ("valid", "")
    fed = fitting(made, case.feeds)
    failed, is_run = "", False
    for runner, expected in case.expected.items():
        try:
            after = RUNNERS[runner](made, fed)
        except Exception as error:  # of a model that may be invalid, so whatever it is
            failed = failed or str(error)[:160]
            continue
        if agrees(expected, after):
            return ("invalid but right", words) if complaints else ("right", "")
        is_run = True
    if complaints:
        return "invalid", words
    if not is_run:
        return "no run", failed
    return ("range", "") if is_beyond(case) else ("wrong", "")


def fitting(made: onnx.ModelProto, feeds: Feeds) -> Feeds:
    """Returns feeds in the types that a model states for its inputs."""
    from onnx import helper

    cast = dict(feeds)
    for info in made.graph.input:
        held = cast.get(info.name)
        number = info.type.tensor_type.elem_type
        if isinstance(held, np.ndarray) and held.dtype.kind == "f" and number in (1, 10, 11):
            cast[info.name] = held.astype(helper.tensor_dtype_to_np_dtype(number))
    return cast


def agrees(before: Feeds, after: Feeds) -> bool:
    """Tells whether outputs are near enough to each other."""
    return all(_is_near(expected, after.get(name)) for name, expected in before.items())


def _is_near(expected: Any, found: Any) -> bool:
    if isinstance(expected, list):
        is_list = isinstance(found, list) and len(found) == len(expected)
        return is_list and all(_is_near(*pair) for pair in zip(expected, found, strict=True))
    if not isinstance(expected, np.ndarray) or not isinstance(found, np.ndarray):
        return type(expected) is type(found)
    if expected.dtype.kind in "OSU":
        return bool(np.array_equal(expected, found))
    if found.shape != expected.shape:
        return False
    wanted, made = expected.astype(np.float64), found.astype(np.float64)
    sound = np.isfinite(wanted)
    if (sound != np.isfinite(made)).any():
        return False
    apart = np.abs(wanted[sound] - made[sound])
    top = float(np.abs(wanted[sound]).max(initial=1e-3))
    if expected.dtype.kind in "iub":
        return float((apart > max(1 - (expected.dtype.kind == "b"), _WRONG * top)).sum()) <= _WRONG * apart.size
    return float(apart.max(initial=0.0)) <= _WRONG * top


def is_beyond(case: Case) -> bool:
    """Tells whether a model is wrong, too, when it is computed in float32 and each node's output is rounded.

    So it is where an input is beyond the type.
    """
    if case.feeds is None:
        return False
    number = _NUMBERS[case.to]
    top = largest_value(number)
    given = [each for each in case.feeds.values() if isinstance(each, np.ndarray) and each.dtype.kind == "f"]
    if any(float(np.abs(each[np.isfinite(each)]).max(initial=0)) > top for each in given):
        return True
    source = model.from_proto(onnx.ModelProto.FromString(case.data))
    if number == BFLOAT16 and (standard_opset(source.proto) or 0) < _FIRST_OPSET_WITH_BFLOAT16:
        source, _ = convert_opset(source, _FIRST_OPSET_WITH_BFLOAT16)
    for name, expected in case.expected.items():
        try:
            rounded = whole(Emulation(source, number, clamp=True).emulated(()))
            runner = by_reference if name == "reference" else by_runtime
            return not agrees(expected, runner(rounded, round_feeds(case.feeds, number)))
        except BenchError:
            continue
    return False


def casts(proto: onnx.ModelProto) -> int:
    """Returns how many Casts a model has."""
    return sum(ref.node.op_type == "Cast" for ref in GraphIndex(proto).nodes())


def run(data: bytes, feeds: Feeds, runner: str) -> Feeds | None:
    """Returns what a float32 model makes of inputs; None if it is not run."""
    try:
        return dict((by_reference if runner == "reference" else by_runtime)(onnx.ModelProto.FromString(data), feeds))
    except BenchError:
        return None


def case_of(source: Model, to: str, given: Feeds | None, runners: Sequence[str], worker: Worker) -> Case:
    """Returns a case of a model, with what it makes of these inputs, or of drawn ones, by each that can run it."""
    proto = whole(source)
    data = proto.SerializeToString()
    feeds = given
    try:
        feeds = feeds or dict(first_set(source).feeds)
    except BenchError:
        feeds = None
    expected = {}
    if feeds is not None and not is_random(proto):
        expected = {name: made for name in runners if (made := worker.ask(run, data, feeds, name)) is not None}
    return Case(data, to, feeds, expected, casts(proto))


def is_installed(module: str) -> bool:
    """Tells whether a module can be imported."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def subjects(said: argparse.Namespace) -> Iterator[tuple[str, Model, Feeds | None]]:
    """Yields the models that the command line asks for, with inputs if some come with them."""
    if said.node:
        yield from backend_tests()
        return
    paths = said.models or sorted(Path(".corpus").glob("*.onnx"))
    if said.torch:
        paths = exported(said.torch)
    for path in paths:
        if path.stat().st_size <= _LARGEST:
            source = model.load(path)
            known = KNOWN.get(path.stem)
            yield path.stem, source, dict(first_set(source, known).feeds) if known else None


def exported(folder: Path) -> list[Path]:
    """Returns the files of the PyTorch models, exported to a folder unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("*.onnx")):
        import exporting

        for name in exporting.MODELS:
            exporting.exported(name, folder)
    return sorted(folder.glob("*.onnx"))


def main() -> None:
    """Prints a line per model where tools differ, and the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--to", default="fp16", choices=("fp16", "bf16"))
    parser.add_argument("--node", action="store_true")
    parser.add_argument("--torch", type=Path, metavar="FOLDER")
    parser.add_argument("--match", default="")
    parser.add_argument("--tools", default=",".join(TOOLS))
    said = parser.parse_args()
    onnxruntime.set_default_logger_severity(4)
    tools = [name for name in said.tools.split(",") if said.to in TOOLS[name][2]]
    for name in [name for name in tools if not is_installed(TOOLS[name][0])]:
        print(f"{name}: not installed")
        tools.remove(name)
    tallies = {name: Tally() for name in tools}
    runner, workers = Worker(), {name: Worker() for name in tools}
    for name, source, feeds in subjects(said):
        if said.match not in name or find_complaints(source.with_small_weights(source.proto)):
            continue
        case = case_of(source, said.to, feeds, WANTED[said.to, said.node], runner)
        found = {tool: workers[tool].ask(attempt, tool, case) or Outcome("crashed") for tool in tools}
        first = found[tools[0]]
        for tool, each in found.items():
            tally = tallies[tool]
            tally.verdicts[each.verdict] += 1
            tally.casts += each.casts
            tally.idle += each.verdict in SOUND and not each.is_converted
            if first.counts and each.counts:
                tally.more += each.casts > first.casts
                tally.fewer += each.casts < first.casts
        if not said.node or any((each.verdict, each.casts) != ("right", first.casts) for each in found.values()):
            told = [f"{tool}: {each.verdict} {each.words or f'{each.casts:+d} Casts'}" for tool, each in found.items()]
            print(f"{name:32} {'; '.join(told)}", flush=True)
    for worker in (runner, *workers.values()):
        worker.close()
    print(f"\n| {said.to} | {' | '.join(VERDICTS)} | idle | Casts | fewer | more |\n|{'---|' * (len(VERDICTS) + 5)}")
    for tool, tally in tallies.items():
        counts = " | ".join(f"{tally.verdicts[verdict]:,}" for verdict in VERDICTS)
        print(f"| {tool} | {counts} | {tally.idle:,} | {tally.casts:+,} | {tally.fewer:,} | {tally.more:,} |")


if __name__ == "__main__":
    main()
