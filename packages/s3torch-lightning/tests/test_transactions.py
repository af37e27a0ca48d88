"""Transactions of fsspec: all that is written in one becomes visible at its end, or none of it."""

from __future__ import annotations

import contextlib
import gc
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s3core import S3Exception
from s3torch_lightning import S3FileSystem
from servers import CountingServer


@pytest.mark.parametrize("mode", ["wb", "w"])
def test_a_transaction_commits_its_compressed_files(
    fs: S3FileSystem, filled: str, server: CountingServer, mode: str
) -> None:
    with fs.transaction:
        with fs.open(f"{filled}/top", mode, compression="gzip") as file:
            file.write(b"later" if mode == "wb" else "later")
        del file
        gc.collect()
        assert server.get("top") == b"top"
    assert gzip.decompress(server.get("top")) == b"later"


@pytest.mark.parametrize("mode", ["wb", "w"])
def test_a_transaction_shows_all_of_its_files_at_its_end_or_none(
    fs: S3FileSystem, filled: str, server: CountingServer, mode: str
) -> None:
    def write(error: bool) -> None:
        with fs.transaction:
            for name in ("top", "new"):
                with fs.open(f"{filled}/{name}", mode) as file:
                    file.write(b"later" if mode == "wb" else "later")
                assert file.closed
                del file
                gc.collect()
            assert server.get("top") == b"top"
            if error:
                raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        write(error=True)
    assert server.get("top") == b"top"
    assert "new" not in server.objects()
    write(error=False)
    assert server.get("top") == server.get("new") == b"later"


WAYS_TO_WRITE: dict[str, Callable[[S3FileSystem, str, Path], Any]] = {
    "pipe_file": lambda fs, path, local: fs.pipe_file(path, b"later"),
    "pipe": lambda fs, path, local: fs.pipe({path: b"later"}),
    "put_file": lambda fs, path, local: fs.put_file(str(local), path),
    "put": lambda fs, path, local: fs.put(str(local), path),
    "write_text": lambda fs, path, local: fs.write_text(path, "later"),
    "mapper": lambda fs, path, local: fs.get_mapper(path.removesuffix("/top")).update(top=b"later"),
}


@pytest.mark.parametrize("write", WAYS_TO_WRITE.values(), ids=WAYS_TO_WRITE)
def test_whatever_writes_in_a_transaction_waits_for_its_end(
    fs: S3FileSystem, filled: str, server: CountingServer, tmp_path: Path, write: Callable[..., Any]
) -> None:
    (tmp_path / "local").write_bytes(b"later")
    if write is WAYS_TO_WRITE["write_text"] and not hasattr(fs, "write_text"):
        pytest.skip("this version of fsspec has no write_text")
    with contextlib.suppress(RuntimeError), fs.transaction:
        write(fs, f"{filled}/top", tmp_path / "local")
        raise RuntimeError("no")
    assert server.get("top") == b"top"
    assert server.uploads() == []
    with fs.transaction:
        write(fs, f"{filled}/top", tmp_path / "local")
        assert server.get("top") == b"top"
    assert server.get("top") == b"later"


@pytest.mark.parametrize("mode", ["wb", "w"])
def test_a_transaction_refuses_a_file_that_was_never_closed(
    fs: S3FileSystem, filled: str, server: CountingServer, mode: str
) -> None:
    def write() -> None:
        with fs.transaction:
            file = fs.open(f"{filled}/top", mode)
            file.write(b"half" if mode == "wb" else "half")
            del file
            gc.collect()

    with pytest.raises(S3Exception, match=r"/top was (given up|not closed) in its transaction"):
        write()
    gc.collect()
    assert server.get("top") == b"top"
    with fs.open(f"{filled}/new", mode) as file:
        file.write(b"later" if mode == "wb" else "later")
    assert server.get("new") == b"later"


@pytest.mark.parametrize("mode", ["wb", "w"])
def test_a_transaction_refuses_a_file_that_was_given_up(
    fs: S3FileSystem, filled: str, server: CountingServer, mode: str
) -> None:
    def write() -> None:
        with fs.transaction, contextlib.suppress(RuntimeError), fs.open(f"{filled}/top", mode) as file:
            file.write(b"half" if mode == "wb" else "half")
            raise RuntimeError("no")

    with pytest.raises(S3Exception, match="/top was given up in its transaction"):
        write()
    assert server.get("top") == b"top"


def test_a_transaction_without_a_block_is_over_when_its_commit_fails(
    fs: S3FileSystem, filled: str, server: CountingServer
) -> None:
    fs.start_transaction()
    file = fs.open(f"{filled}/top", "wb")
    file.write(b"half")
    with pytest.raises(S3Exception, match="/top was not closed in its transaction"):
        fs.end_transaction()
    fs.pipe_file(f"{filled}/new", b"later")
    assert server.get("top") == b"top"
    assert server.get("new") == b"later"
    with fs.transaction:
        fs.pipe_file(f"{filled}/top", b"later")
        assert server.get("top") == b"top"
    assert server.get("top") == b"later"
