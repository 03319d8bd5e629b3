"""The wire format: weights come out of a model and go back in, to the byte; nothing malformed is more than an error."""

from __future__ import annotations

import onnx
import pytest
from cases import Case, all_cases, cases, named
from gen.core import field_bytes, field_varint, tag, varint
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto as T

from onnxbench import weights
from onnxbench.wire import STUB_PREFIX, Splice, WireError, lift, splice

LARGE_REAL_MODELS = ("magika", "eeg_spindle_unet", "silero_vad", "silero_vad_16k_op15", "tashkeel_seq2seq")


def _is_binary_model(case: Case) -> bool:
    return case.path.suffix == ".onnx" and case.entry.get("error") != "not-a-model"


def _stubs(proto: onnx.ModelProto) -> list[tuple[T, int, int]]:
    found = []
    for tensor in weights.tensors(proto):
        said = {entry.key: entry.value for entry in tensor.external_data}
        if str(said.get("location", "")).startswith(STUB_PREFIX):
            found.append((tensor, int(said["offset"]), int(said["length"])))
    return found


def _put_back(data: bytes, lifted: bytes, *, chunk: bytes = b"<payload %06d>") -> bytes:
    """Returns the model that lift took apart, by way of splice."""
    proto = onnx.ModelProto.FromString(lifted)
    stubs = _stubs(proto)
    for number, (tensor, _, _) in enumerate(stubs):
        explicit = any(entry.key == "explicit" for entry in tensor.external_data)
        del tensor.external_data[:]
        tensor.ClearField("data_location")
        if explicit:
            tensor.data_location = T.DEFAULT
        tensor.raw_data = chunk % number
    structure = proto.SerializeToString(deterministic=True)
    places = sorted((structure.index(chunk % number), number) for number in range(len(stubs)))
    payloads = [data[stubs[number][1] : stubs[number][1] + stubs[number][2]] for _, number in places]
    segments = splice(structure, [at for at, _ in places], [len(payload) for payload in payloads])
    return b"".join(payloads[part.number] if isinstance(part, Splice) else part for part in segments)


def _canonical(data: bytes) -> bytes:
    return onnx.ModelProto.FromString(data).SerializeToString(deterministic=True)


@cases(_is_binary_model)
def test_lift_and_splice_give_back_every_fixture(case: Case) -> None:
    data = case.path.read_bytes()
    lifted, count = lift(data, location="here", threshold=1)

    assert len(_stubs(onnx.ModelProto.FromString(lifted))) == count
    # Protobuf has one way to write a message in order; a file written in another way comes back in that one.
    assert _put_back(data, lifted) == _canonical(data)
    if case.name not in ("wire_graph_in_two_pieces.onnx", "wire_unpacked_fields.onnx"):
        assert _canonical(data) == data


@pytest.mark.corpus
@pytest.mark.parametrize("name", LARGE_REAL_MODELS)
def test_lift_and_splice_give_back_real_models(corpus, name: str) -> None:
    data = corpus(name)[0].read_bytes()

    lifted, count = lift(data, location="here", threshold=256)

    assert count > 0
    assert len(lifted) < len(data) // 2
    assert _put_back(data, lifted) == data


@pytest.mark.parametrize("threshold", [1, 7, 100, 4096])
def test_what_is_shorter_than_the_threshold_stays(threshold: int) -> None:
    data = named("whole_model").path.read_bytes()
    sizes = [len(tensor.raw_data) for tensor in weights.tensors(onnx.ModelProto.FromString(data))]

    lifted, count = lift(data, location="here", threshold=threshold)

    assert count == sum(size >= threshold for size in sizes)
    left = [len(tensor.raw_data) for tensor in weights.tensors(onnx.ModelProto.FromString(lifted))]
    assert all(size < threshold for size in left)
    assert (lifted == data) == (count == 0)


def test_everything_but_the_payload_is_kept() -> None:
    data = named("metadata_everywhere").path.read_bytes()
    before = onnx.ModelProto.FromString(data)

    proto = onnx.ModelProto.FromString(lift(data, location="a/b", threshold=1)[0])

    stubs = _stubs(proto)
    assert stubs
    for tensor, offset, length in stubs:
        assert tensor.external_data[0].value == f"{STUB_PREFIX}a/b"
        assert tensor.data_location == T.EXTERNAL
        tensor.raw_data = data[offset : offset + length]
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    assert proto.SerializeToString(deterministic=True) == before.SerializeToString(deterministic=True)


# ---- bytes by hand


def _model(tensor: bytes) -> bytes:
    return field_varint(1, 8) + field_bytes(7, field_bytes(5, tensor))


def _tensor(*, before: bytes = b"", after: bytes = b"", size: int = 64) -> bytes:
    return before + field_varint(1, size) + field_varint(2, T.UINT8) + field_bytes(9, bytes(range(size))) + after


def test_a_tensor_whose_data_is_elsewhere_is_left_alone() -> None:
    for places in (
        field_varint(14, 1),
        field_bytes(13, field_bytes(1, b"location") + field_bytes(2, b"w.bin")),
        field_bytes(13, b""),  # an empty entry, the last byte of the file
    ):
        for data in (_model(_tensor(after=places)), _model(_tensor(before=places))):
            assert lift(data, location="x", threshold=1) == (data, 0)


def test_data_that_is_given_twice_is_left_to_protobuf() -> None:
    data = _model(_tensor(after=field_bytes(9, b"the last word")))

    assert lift(data, location="x", threshold=20) == (data, 0)
    assert onnx.ModelProto.FromString(data).graph.initializer[0].raw_data == b"the last word"


def test_the_default_location_said_aloud_is_remembered() -> None:
    data = _model(_tensor(after=field_varint(14, 0)))

    lifted, count = lift(data, location="x", threshold=1)

    assert count == 1
    assert _put_back(data, lifted) == data


def test_unknown_fields_of_every_wire_type_are_passed_over() -> None:
    group = tag(1995, 3) + tag(1, 3) + field_bytes(2, b"inner") + tag(1, 4) + field_varint(3, 7) + tag(1995, 4)
    unknown = tag(1996, 1) + bytes(8) + tag(1997, 5) + bytes(4)
    unknown += field_bytes(1998, b"bytes") + field_varint(1999, 2**63)
    data = _model(_tensor(before=group, after=unknown)) + group + unknown

    lifted, count = lift(data, location="x", threshold=1)

    assert count == 1
    assert onnx.ModelProto.FromString(data).SerializeToString(deterministic=True) == _put_back(data, lifted)


@pytest.mark.parametrize(
    "data",
    [
        field_varint(1, 8) + tag(7, 2) + varint(2**63),
        field_varint(1, 8) + tag(7, 2) + varint(2**63 - 1),
        field_varint(1, 8) + tag(7, 2) + varint(2**31) + b"short",
        field_varint(1, 8) + tag(7, 2) + b"\xff" * 11,
        tag(7, 2) + b"\x80",
        tag(7, 1) + b"1234567",
        tag(7, 5) + b"123",
        tag(7, 6),
        tag(7, 4),
        tag(7, 3) + field_varint(1, 1),
        tag(7, 3) + tag(1, 2) + varint(2**63) + tag(7, 4),
        b"\x08" + b"\xff" * 40,
        field_bytes(7, field_bytes(5, tag(9, 2) + varint(2**62) + b"x")),
    ],
)
def test_malformed_bytes_are_an_error_and_take_no_memory(data: bytes) -> None:
    with pytest.raises(WireError):
        lift(data, location="x", threshold=1)


def test_messages_nested_without_end_are_an_error() -> None:
    body = b""
    for _ in range(400):
        body = field_bytes(1, field_bytes(5, field_bytes(6, body)))  # node, attribute, graph

    with pytest.raises(WireError, match="nested"):
        lift(field_bytes(7, body), location="x", threshold=1)


def test_a_long_chain_of_truncated_messages_takes_no_time() -> None:
    data = field_bytes(7, b"".join(tag(1, 2) + varint(2**28) for _ in range(50_000)))

    with pytest.raises(WireError):
        lift(data, location="x", threshold=1)


_SOUND = [case.path.read_bytes() for case in all_cases() if _is_binary_model(case) and case.path.stat().st_size < 6000]


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    """Draws the bytes of a model after some accident."""
    data = bytearray(draw(st.sampled_from(_SOUND)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(("cut", "flip", "insert", "length", "repeat"))):
            case "cut":
                del data[at:]
            case "flip":
                if at < len(data):
                    data[at] ^= 1 << draw(st.integers(0, 7))
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=12))
            case "length":
                data[at:at] = varint(draw(st.sampled_from((2**20, 2**31, 2**32, 2**62, 2**63, 2**64 - 1))))
            case "repeat":
                data[at:at] = data[: draw(st.integers(0, len(data)))]
    return bytes(data)


@settings(max_examples=400)
@given(_damaged())
def test_damaged_models_raise_wire_errors_alone(data: bytes) -> None:
    try:
        lifted, count = lift(data, location="x", threshold=1)
    except WireError:
        return
    assert len(lifted) <= len(data) + 120 * count
    try:
        whole = _canonical(data)
    except Exception:  # what protobuf does not take as it was, it need not take without weights
        return
    assert _put_back(data, lifted) == whole


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_random_bytes_raise_wire_errors_alone(data: bytes) -> None:
    try:
        lifted, count = lift(data, location="x", threshold=1)
    except WireError:
        return
    assert count or lifted == data
