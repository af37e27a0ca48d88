"""Manifests: saved and loaded without a listing, read by other tools, and inventories read as they come."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3core import ObjectInfo
from s3torch_datasets import ObjectFilter, S3BucketKeyData, S3IterableDataset, S3MapDataset
from servers import CountingServer

Make = Callable[..., Any]
Fill = Callable[..., list[bytes]]
ENDINGS = ["parquet", "jsonl", "jsonl.gz"]

key = attrgetter("key")
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=12)
objects = st.builds(
    lambda bucket, name, size, etag, weak, version: S3BucketKeyData(
        bucket, name, None if size is None else ObjectInfo(name, size, etag and f'{weak}"{etag}"', version_id=version)
    ),
    st.sampled_from(["bucket-one", "bucket-two"]),
    texts,
    st.one_of(st.none(), st.integers(0, 2**45)),
    st.one_of(st.none(), st.text("0123456789abcdef-", min_size=1)),
    st.sampled_from(["", "W/"]),
    st.one_of(st.none(), st.just("v1")),
)


def loaded(manifest: Any, connection: dict[str, Any], **arguments: Any) -> list[S3BucketKeyData]:
    return list(S3MapDataset.from_manifest(manifest, **connection, **arguments).index)


@pytest.mark.parametrize("ending", ENDINGS)
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(objects, max_size=20))
def test_what_is_saved_is_loaded(
    ending: str, rows: list[S3BucketKeyData], tmp_path: Path, connection: dict[str, Any]
) -> None:
    path = tmp_path / f"objects.{ending}"
    region, endpoint, config = connection.values()
    S3MapDataset(region, lambda client: rows, endpoint, s3client_config=config).save_manifest(path)
    assert loaded(path, connection) == rows
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", [S3MapDataset, S3IterableDataset])
def test_a_manifest_in_a_bucket_replaces_the_listing(
    kind: Any, ending: str, make_map: Make, fill: Fill, counting_server: CountingServer, connection: dict[str, Any]
) -> None:
    contents = fill(5)
    uri = f"s3://{counting_server.bucket}/lists/train.{ending}"
    make_map().save_manifest(uri)
    counting_server.clear()
    dataset = kind.from_manifest(uri, transform=lambda reader: reader.read(), **connection)
    assert [dataset[row] for row in range(5)] if kind is S3MapDataset else list(dataset) == contents
    assert "ListObjectsV2" not in counting_server.operations()


def test_other_tools_read_the_parquet_file(make_map: Make, fill: Fill, tmp_path: Path) -> None:
    fill(3)
    make_map().save_manifest(tmp_path / "objects.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "objects.parquet")
    assert table.column_names == ["bucket", "key", "size", "etag", "version_id"]
    assert table.column("key").to_pylist() == ["data/00000", "data/00001", "data/00002"]
    assert table.column("size").to_pylist() == [1, 2, 3]


def test_json_lines_leave_out_what_is_not_known(tmp_path: Path, connection: dict[str, Any]) -> None:
    S3MapDataset.from_objects("s3://bucket/a", **connection).save_manifest(tmp_path / "objects.jsonl")
    assert (tmp_path / "objects.jsonl").read_text() == '{"bucket": "bucket", "key": "a"}\n'


def test_a_failed_save_leaves_the_old_file(make_map: Make, counting_server: CountingServer, tmp_path: Path) -> None:
    path = tmp_path / "objects.jsonl"
    path.write_text("old")
    counting_server.fault(operation="ListObjectsV2", status=403, code="AccessDenied")
    with pytest.raises(PermissionError):
        make_map().save_manifest(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_not_in_the_way(make_map: Make, fill: Fill, tmp_path: Path) -> None:
    fill(1)
    left = tmp_path / f"objects.jsonl.{os.getpid()}.tmp"  # in a container, every first process has the same number
    left.write_text("left")
    make_map().save_manifest(tmp_path / "objects.jsonl")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "objects.jsonl", left]
    assert left.read_text() == "left"


@pytest.mark.parametrize("name", ["objects.txt", "objects", "s3://bucket/objects.csv"])
def test_an_unknown_ending_is_refused_with_those_that_are_known(
    name: str, make_map: Make, connection: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="parquet"):
        make_map().save_manifest(name)


def test_an_unknown_file_is_refused(tmp_path: Path, connection: dict[str, Any]) -> None:
    (tmp_path / "objects.txt").write_text("x")
    with pytest.raises(ValueError, match=r"objects\.txt.*parquet"):
        loaded(tmp_path / "objects.txt", connection)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"bucket": "b", "key": "k"}\nnonsense\n', "line 2"),
        ("a.jsonl", '{"bucket": "b"}\n', "row 1"),
        ("a.jsonl", '{"bucket": "b", "key": "k", "size": "many"}\n', "row 1"),
        ("a.csv", "bucket,key,size\nb,k\n", "row 1 has 2 columns"),
        ("a.csv", "b,k,1,x,y\n", "columns="),
        ("a.csv", "key,size\nk,1\n", "bucket and key"),
        ("a.csv", "bucket,key,version_id\nb,k,v\n", "row 1.*size"),
        ("a.csv", "bucket,key,size,version_id\nb,j,1,v\nb,k,,v\n", "row 2.*size"),
        ("a.jsonl", '{"bucket": "b", "key": "k", "etag": "0123"}\n', "row 1.*size"),
        ("manifest.json", "{}", "destinationBucket"),
    ],
)
def test_a_malformed_manifest_is_named_with_the_place(
    name: str, text: str, message: str, tmp_path: Path, connection: dict[str, Any]
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        loaded(tmp_path / name, connection)
    assert name in str(caught.value)


@pytest.mark.parametrize("ending", ["jsonl.gz", "csv.gz", "parquet"])
def test_a_manifest_that_was_cut_short_is_named(ending: str, tmp_path: Path, connection: dict[str, Any]) -> None:
    path = tmp_path / f"objects.{ending}"
    rows = [S3BucketKeyData("bucket", f"key-{number}", ObjectInfo(f"key-{number}", number)) for number in range(999)]
    region, endpoint, config = connection.values()
    if ending == "csv.gz":
        path.write_bytes(gzip.compress("".join(f"bucket,{one.key},5\n" for one in rows).encode()))
    else:
        S3MapDataset(region, lambda client: rows, endpoint, s3client_config=config).save_manifest(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"objects.{ending} cannot be read"):
        loaded(path, connection)


def test_a_csv_of_a_spreadsheet_is_read(tmp_path: Path, connection: dict[str, Any]) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfbucket,key\r\nb,k\r\n\r\nb,l\r\n\r\n")
    assert loaded(tmp_path / "a.csv", connection) == [S3BucketKeyData("b", "k"), S3BucketKeyData("b", "l")]


MEASURE = """
import sys
from s3torch_datasets import S3MapDataset
import tqdm
def peak():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
before = peak()
assert len(S3MapDataset.from_manifest(sys.argv[1], region="us-east-1", progress=False)) == 200
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_manifest_larger_than_memory_is_read_through_a_window(counting_server: CountingServer) -> None:
    row = json.dumps({"bucket": "bucket", "key": "key"}).encode()
    counting_server.put("large.jsonl", (row + b" " * 2**20 + b"\n") * 200)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, f"s3://{counting_server.bucket}/large.jsonl"],
        env=os.environ | counting_server.environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 150


def test_a_csv_with_a_header_is_read_as_written(tmp_path: Path, connection: dict[str, Any]) -> None:
    (tmp_path / "a.csv").write_text('key,bucket,size\n"a,b+c %41",bucket,5\n')
    assert loaded(tmp_path / "a.csv", connection) == [
        S3BucketKeyData("bucket", "a,b+c %41", ObjectInfo("a,b+c %41", 5))
    ]


INVENTORY = """\
"bucket","data/sp+ace%2B%E6%BC%A2.jpg","v","true","false","17","2026-01-01T00:00:00.000Z","0123456789abcdef0123456789abcdef","STANDARD"
"bucket","data/old.jpg","v","false","false","17","2026-01-01T00:00:00.000Z","0123456789abcdef0123456789abcdef","STANDARD"
"bucket","data/gone.jpg","v","true","true","","2026-01-01T00:00:00.000Z","",""
"bucket","data/folder/","v","true","false","0","2026-01-01T00:00:00.000Z","d41d8cd98f00b204e9800998ecf8427e","STANDARD"
"bucket","data/cold.jpg","v","true","false","9","2026-01-01T00:00:00.000Z","0123456789abcdef0123456789abcdef","GLACIER"
"""
SCHEMA = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag, StorageClass"
FOUND = S3BucketKeyData(
    "bucket",
    "data/sp ace+漢.jpg",
    ObjectInfo("data/sp ace+漢.jpg", 17, '"0123456789abcdef0123456789abcdef"'),
)


def test_an_inventory_in_csv_gives_the_latest_readable_objects(tmp_path: Path, connection: dict[str, Any]) -> None:
    (tmp_path / "inventory.csv.gz").write_bytes(gzip.compress(INVENTORY.encode()))
    assert loaded(tmp_path / "inventory.csv.gz", connection, columns=SCHEMA) == [FOUND]
    everything = ObjectFilter(directory_markers=True, archived=True)
    kept = loaded(tmp_path / "inventory.csv.gz", connection, columns=SCHEMA, object_filter=everything)
    assert [one.key for one in kept] == [FOUND.key, "data/folder/", "data/cold.jpg"]


@pytest.mark.parametrize("column", ["storage_class", "is_delete_marker"])
def test_a_version_of_ones_own_is_read_whatever_else_is_told(
    column: str, tmp_path: Path, connection: dict[str, Any]
) -> None:
    (tmp_path / "a.csv").write_text(f"bucket,key,size,version_id,{column}\nb,k,3,v,false\n")
    assert loaded(tmp_path / "a.csv", connection) == [S3BucketKeyData("b", "k", ObjectInfo("k", 3, version_id="v"))]


@pytest.mark.parametrize("kind", ["CSV", "Parquet"])
def test_an_inventory_of_few_columns_is_one(
    kind: str, counting_server: CountingServer, connection: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "inventory"
    if kind == "CSV":
        path.write_text('"bucket","data/","0"\n"bucket","data/a","3"\n')
    else:
        table = pyarrow.table({"bucket": ["bucket"] * 2, "key": ["data/", "data/a"], "size": [0, 3]})
        pyarrow.parquet.write_table(table, path)
    file = f"inventory/1.{kind.lower()}"
    counting_server.put(file, path.read_bytes())
    inventory = {
        "destinationBucket": f"arn:aws:s3:::{counting_server.bucket}",
        "fileFormat": kind,
        "fileSchema": "Bucket, Key, Size",
        "files": [{"key": file}],
    }
    counting_server.put("inventory/manifest.json", json.dumps(inventory).encode())
    found = loaded(f"s3://{counting_server.bucket}/inventory/manifest.json", connection)
    assert [one.key for one in found] == ["data/a"]


def test_an_inventory_may_tell_etags_and_no_sizes(tmp_path: Path, connection: dict[str, Any]) -> None:
    path = tmp_path / "inventory.csv"
    path.write_text('"bucket","data/a","abc"\n')
    found = S3MapDataset.from_manifest(path, columns=["Bucket", "Key", "ETag"], **connection)
    assert [(one.key, one.object_info) for one in found.index] == [("data/a", None)]


def test_an_inventory_is_found_through_its_manifest(
    counting_server: CountingServer, connection: dict[str, Any]
) -> None:
    counting_server.put("inventory/data/1.csv.gz", gzip.compress(INVENTORY.encode()))
    counting_server.put(
        "inventory/manifest.json",
        json.dumps(
            {
                "sourceBucket": "bucket",
                "destinationBucket": f"arn:aws:s3:::{counting_server.bucket}",
                "fileFormat": "CSV",
                "fileSchema": SCHEMA,
                "files": [{"key": "inventory/data/1.csv.gz", "size": 5}],
            }
        ).encode(),
    )
    assert loaded(f"s3://{counting_server.bucket}/inventory/manifest.json", connection) == [FOUND]


def test_an_inventory_in_parquet_is_read(tmp_path: Path, connection: dict[str, Any]) -> None:
    table = pyarrow.table(
        {
            "bucket": ["bucket"] * 3,
            "key": ["data/a+b", "data/cold", "data/old"],
            "version_id": ["v1", "v2", "v3"],
            "is_latest": [True, True, False],
            "is_delete_marker": [False] * 3,
            "size": [1, 2, 3],
            "e_tag": ["0123456789abcdef0123456789abcdef-3"] * 3,
            "storage_class": ["STANDARD", "DEEP_ARCHIVE", "STANDARD"],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "inventory.parquet")
    (found,) = loaded(tmp_path / "inventory.parquet", connection)
    assert found.key == "data/a+b"
    assert found.object_info == ObjectInfo("data/a+b", 1, '"0123456789abcdef0123456789abcdef-3"')


def test_a_filter_chooses_from_a_manifest(
    make_map: Make, fill: Fill, tmp_path: Path, connection: dict[str, Any]
) -> None:
    fill(5)
    make_map().save_manifest(tmp_path / "objects.jsonl")
    chosen = loaded(tmp_path / "objects.jsonl", connection, object_filter=ObjectFilter(min_size=3, suffix="4"))
    assert [one.key for one in chosen] == ["data/00004"]


def test_a_missing_manifest_is_a_missing_file(counting_server: CountingServer, connection: dict[str, Any]) -> None:
    for name in ("/no/such/manifest.jsonl", f"s3://{counting_server.bucket}/manifest.jsonl"):
        with pytest.raises(FileNotFoundError, match=r"manifest\.jsonl"):
            loaded(name, connection)
