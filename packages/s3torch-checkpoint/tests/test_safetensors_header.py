"""safetensors headers: what we write the library reads, and hostile ones are refused before anything is allocated."""

from __future__ import annotations

import json
import struct
import tracemalloc
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st

from s3torch_checkpoint import CorruptCheckpointError
from s3torch_checkpoint.safetensors._header import DTYPES, Header, build_header, header_length, parse_header

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def parse(fields: object, data_bytes: int) -> Header:
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return parse_header(text, 8 + len(text) + data_bytes, "s3://b/k")


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 5), max_size=3)),
        max_size=8,
    ),
    st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
def test_a_header_that_was_built_is_parsed_to_the_same(
    tensors: dict[str, tuple[str, list[int]]], metadata: dict[str, str] | None
) -> None:
    wanted = {name: (DTYPES[code], tuple(shape)) for name, (code, shape) in tensors.items()}
    built, order = build_header(wanted, metadata)
    assert len(built) % 8 == 0
    size = len(built) + sum(torch.Size(shape).numel() * dtype.itemsize for dtype, shape in wanted.values())
    assert header_length(built, size, "s3://b/k") == len(built) - 8
    header = parse_header(built[8:], size, "s3://b/k")
    assert {name: (entry.dtype, entry.shape) for name, entry in header.tensors.items()} == wanted
    assert header.metadata == metadata
    assert sorted(order) == sorted(wanted)


@given(st.binary(max_size=200), st.integers(0, 300))
def test_no_text_whatever_is_more_than_an_error(text: bytes, data_bytes: int) -> None:
    try:
        parse_header(text, 8 + len(text) + data_bytes, "s3://b/k")
    except CorruptCheckpointError:
        pass


SIZES = st.sampled_from([0, 1, 2, 2**31, 2**32 + 1, 2**61, 2**62, 2**63 - 1, 2**63, 2**64, -1])


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=3),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(sorted(DTYPES)),
                "shape": st.lists(SIZES, max_size=4) | st.lists(SIZES, min_size=63, max_size=66),
                "data_offsets": st.lists(SIZES | st.just(8) | st.just(0), min_size=2, max_size=2),
            }
        ),
        min_size=1,
        max_size=2,
    ),
    st.sampled_from([0, 8, 16]),
)
def test_what_is_accepted_has_the_bytes_that_its_tensors_need_and_torch_can_count_them(
    fields: dict[str, Any], data_bytes: int
) -> None:
    try:
        header = parse(fields, data_bytes)
    except CorruptCheckpointError:
        return
    entries = header.tensors.values()
    assert sum(entry.end - entry.start for entry in entries) == data_bytes
    for entry in entries:
        assert torch.empty(entry.shape, dtype=entry.dtype).nbytes == entry.end - entry.start


def test_the_memory_for_a_shape_whose_strides_overflow_is_not_asked_for() -> None:
    for shape in ([0, 2**62, 2**62], [2**62, 2**62, 0], [2**31, 2**32, 0], [2**62] * 63 + [0]):
        with pytest.raises(CorruptCheckpointError, match="too large"):
            parse({"a": {"dtype": "F64", "shape": shape, "data_offsets": [0, 0]}}, 0)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001, 93])
def test_a_length_that_cannot_be_right_is_refused_without_allocation(length: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CorruptCheckpointError, match="claims"):
            header_length(struct.pack("<Q", length), 100, "s3://b/k")
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("prefix", [b"", b"1234567"])
def test_an_object_too_short_for_a_header_is_refused(prefix: bytes) -> None:
    with pytest.raises(CorruptCheckpointError, match="too few"):
        header_length(prefix, len(prefix), "s3://b/k")


@pytest.mark.parametrize(
    ("fields", "data_bytes", "complaint"),
    [
        ([], 0, "not a JSON object"),
        (b" {}", 0, "not a JSON object"),
        (b"{", 0, "not valid"),
        (b'{"a":NaN}', 0, "not valid"),
        (b'{"a":' + b"[" * 100_000, 0, "not valid"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":1}', 8, "twice"),
        (b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8, "twice"),
        ({"a": {**F32, "data_offsets": [0, 9]}}, 9, "needs 8 bytes"),
        ({"a": {**F32, "data_offsets": [8, 0]}}, 8, "needs 8 bytes"),
        ({"a": {**F32, "data_offsets": [-8, 0]}}, 8, "data_offsets"),
        ({"a": {**F32, "data_offsets": [0.0, 8]}}, 8, "data_offsets"),
        ({"a": {**F32, "data_offsets": [True, 8]}}, 8, "data_offsets"),
        ({"a": {**F32, "shape": [-2]}}, 8, "shape"),
        ({"a": {**F32, "shape": [2**62, 2**62]}}, 8, "too large"),
        ({"a": {**F32, "shape": [2**32]}}, 8, "needs"),
        ({"a": {**F32, "shape": [1] * 65}}, 8, "shape"),
        ({"a": {**F32, "dtype": "F128"}}, 8, "dtype"),
        ({"a": {**F32, "extra": 1}}, 8, "not described"),
        ({"a": None}, 8, "not described"),
        ({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, 12, "overlaps"),
        ({"a": F32, "b": {**F32, "data_offsets": [12, 20]}}, 20, "hole"),
        ({"a": F32}, 16, "end at byte"),
        ({"a": {**F32, "data_offsets": [8, 16]}}, 16, "hole"),
        ({"__metadata__": {"a": 1}}, 0, "map of texts"),
        ({"__metadata__": []}, 0, "map of texts"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(fields: object, data_bytes: int, complaint: str) -> None:
    with pytest.raises(CorruptCheckpointError, match=complaint) as caught:
        parse(fields, data_bytes)
    assert "s3://b/k" in str(caught.value)


def test_the_library_reads_what_is_built() -> None:
    built, _ = build_header({"a": (torch.float32, (2,)), "b": (torch.uint8, (3,))}, {"format": "pt"})
    names = dict(safetensors.deserialize(built + bytes(11)))
    assert sorted(names) == ["a", "b"]


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"__metadata__": (torch.float32, (1,))}, None),
        ({"a": (torch.complex128, (1,))}, None),
        ({"a": (torch.float32, (1,))}, {"a": 1}),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tensors: dict[str, object], metadata: dict[str, str] | None) -> None:
    with pytest.raises(ValueError, match=r"safetensors|format"):
        build_header(tensors, metadata)  # type: ignore[arg-type]
