"""Manifests of any bytes: they are read, or a ValueError names them."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3torch_datasets import S3MapDataset

many = settings(
    deadline=None,
    max_examples=100,
    # A loaded machine makes examples slow, not wrong.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
Read = Callable[[str, bytes], None]

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**62, 2**70)
    | st.floats()
    | st.text()
    | st.sampled_from(["\ud800", "\x00", "1.5", "-1"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)
rows = st.fixed_dictionaries(
    {"bucket": st.just("bucket") | values, "key": st.just("key") | values},
    optional={"size": values, "etag": values, "version_id": values},
)
csv_lines = st.lists(
    st.sampled_from(["key", "bucket", "size", "etag", "1", "-1", "9" * 30, '"', "\x00", "\r"]), max_size=4
)
inventories = st.fixed_dictionaries(
    {
        "destinationBucket": st.just("bucket") | values,
        "fileSchema": st.just("Bucket, Key") | values,
        "fileFormat": st.just("CSV") | values,
        "files": st.lists(values | st.fixed_dictionaries({"key": st.just("a.txt") | values}), min_size=1) | values,
    }
)


@pytest.fixture
def read(tmp_path: Path, connection: dict[str, Any]) -> Read:
    """Reads bytes as a manifest, whose objects can be had then; every error but the right one is let through."""

    def read(name: str, data: bytes) -> None:
        (tmp_path / name).write_bytes(data)
        refused: ValueError | None = None
        try:
            list(S3MapDataset.from_manifest(tmp_path / name, **connection).index)
        except ValueError as error:
            refused = error
        assert refused is None or name in str(refused)

    return read


@many
@given(lines=st.lists(rows | values, max_size=3))
def test_json_lines_of_any_values(read: Read, lines: list[Any]) -> None:
    read("objects.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines).encode())


@many
@given(lines=st.lists(csv_lines, max_size=4))
def test_cells_of_any_text(read: Read, lines: list[list[str]]) -> None:
    read("objects.csv", "\n".join(",".join(line) for line in lines).encode())


@many
@given(inventory=inventories | values)
def test_inventories_of_any_values(read: Read, inventory: Any) -> None:
    read("manifest.json", json.dumps(inventory).encode())


@many
@given(
    data=st.binary(max_size=200), name=st.sampled_from(["a.jsonl", "a.csv", "a.csv.gz", "a.parquet", "manifest.json"])
)
def test_any_bytes(read: Read, name: str, data: bytes) -> None:
    read(name, data)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", b"[" * 100_000),
        ("manifest.json", b"[" * 100_000),
        ("a.csv", b"bucket," + b"k" * 200_000),
        ("a.jsonl", b'{"bucket": "b", "key": "k", "size": Infinity}'),
        ("a.jsonl", b'{"bucket": "b", "key": "k", "size": -1}'),
        ("a.jsonl", b'{"bucket": "b", "key": "k", "size": 9223372036854775808}'),
        ("a.jsonl", b'{"bucket": "b", "key": "k", "size": 1.5}'),
        ("a.jsonl", b'{"bucket": "b", "key": "k", "size": 1, "etag": 5}'),
        ("a.jsonl", b'{"bucket": "b", "key": "k", "size": 1, "version_id": ["v"]}'),
        ("a.jsonl", b'{"bucket": "b", "key": "\\ud800"}'),
    ],
)
def test_what_cannot_be_an_object_is_refused(
    name: str, data: bytes, tmp_path: Path, connection: dict[str, Any]
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=name):
        len(S3MapDataset.from_manifest(tmp_path / name, **connection))


def parquet(columns: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


@pytest.mark.parametrize("name", ["objects.parquet", "objects.jsonl.gz"])
@many
@given(seed=st.integers(0, 2**32))
def test_a_file_with_broken_bytes(read: Read, name: str, seed: int) -> None:
    text = ["bucket", "key"]
    whole = parquet({"bucket": text, "key": text, "size": [1, 2]})
    data = bytearray(whole if name.endswith("parquet") else gzip.compress(b'{"bucket": "b", "key": "k"}\n' * 20))
    generator = random.Random(seed)
    for _ in range(generator.choice([1, 1, 3])):
        data[generator.randrange(len(data))] = generator.randrange(256)
    read(name, bytes(data))


@pytest.mark.parametrize("column", ["bucket", "key", "size", "etag", "version_id"])
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (b"\xff", pyarrow.binary()),
        (float("inf"), pyarrow.float64()),
        (2**63, pyarrow.uint64()),
        (True, pyarrow.bool_()),
        (["a"], pyarrow.list_(pyarrow.string())),
        (2**30, pyarrow.date32()),
        (1, pyarrow.timestamp("us", tz="Mars/Phobos")),
        (10**18 + 1, pyarrow.timestamp("ns")),
    ],
    ids=str,
)
def test_columns_of_other_types(read: Read, column: str, value: Any, kind: Any) -> None:
    columns = {name: pyarrow.array(["text"]) for name in ("bucket", "key", "etag", "version_id")}
    read("objects.parquet", parquet({**columns, "size": pyarrow.array([1]), column: pyarrow.array([value], kind)}))


def test_columns_of_no_use_are_not_read(tmp_path: Path, connection: dict[str, Any]) -> None:
    no_such_zone = pyarrow.array([1], pyarrow.timestamp("us", tz="Mars/Phobos"))
    path = tmp_path / "objects.parquet"
    path.write_bytes(parquet({"seen_at": no_such_zone, "key": ["key"], "key.x": [1], "bucket": ["bucket"]}))
    assert [one.uri for one in S3MapDataset.from_manifest(path, **connection).index] == ["s3://bucket/key"]
