"""`s3://` in fsspec, as Lightning and its loggers use it."""

from __future__ import annotations

import contextlib
import gc
import gzip
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.compression import compr

from s3core import AccessDeniedError, NoSuchBucketError, S3ClientConfig, S3Exception
from s3torch_lightning import S3FileSystem, S3LightningCheckpoint, register_filesystem
from servers import CountingServer


def test_a_folder_lists_its_files_and_folders(fs: S3FileSystem, filled: str) -> None:
    bucket = filled.removeprefix("s3://")
    assert fs.ls(filled, detail=False) == [f"{bucket}/run", f"{bucket}/run2", f"{bucket}/top"]
    for path in (f"{filled}/run", f"{filled}/run/", f"{bucket}/run"):
        entries = fs.ls(path, detail=True)
        assert [(each["name"], each["type"], each["size"]) for each in entries] == [
            (f"{bucket}/run/a.ckpt", "file", 10),
            (f"{bucket}/run/b", "directory", 0),
        ]
    assert fs.ls(f"{filled}/run/a.ckpt", detail=False) == [f"{bucket}/run/a.ckpt"]


def test_a_folder_that_is_not_there_is_a_file_not_found_error(fs: S3FileSystem, filled: str) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        fs.ls(f"{filled}/none")
    with pytest.raises(FileNotFoundError, match="none"):
        fs.info(f"{filled}/none")


def test_what_exists_is_told_apart(fs: S3FileSystem, filled: str) -> None:
    expected = {"run": (True, True, False), "run/a.ckpt": (True, False, True), "ru": (False, False, False)}
    expected |= {"run/b/": (True, True, False), "top": (True, False, True), "top/x": (False, False, False)}
    for name, answers in expected.items():
        path = f"{filled}/{name}"
        assert (fs.exists(path), fs.isdir(path), fs.isfile(path)) == answers, name
    assert fs.isdir(filled)


def test_a_folder_exists_once_it_was_made_and_leaves_nothing_in_the_bucket(
    fs: S3FileSystem, server: CountingServer
) -> None:
    path = f"s3://{server.bucket}/logs/version_0"
    assert not fs.isdir(path)
    fs.makedirs(path)
    assert fs.isdir(path)
    assert fs.isdir(f"s3://{server.bucket}/logs")
    assert fs.ls(path) == []
    fs.makedirs(path, exist_ok=True)
    with pytest.raises(FileExistsError):
        fs.makedirs(path)
    fs.rmdir(path)
    assert not fs.exists(path)
    assert server.keys() == []


def test_a_folder_is_gone_with_those_in_it(fs: S3FileSystem, filled: str) -> None:
    for remove in (fs.rmdir, lambda path: fs.rm(path, recursive=True), lambda path: fs.mv(path, f"{path}2", True)):
        fs.makedirs(f"{filled}/new/logs/version_0")
        fs.pipe_file(f"{filled}/new/notes", b"")
        remove(f"{filled}/new")
        fs.rm_file(f"{filled}/new/notes")
        assert not fs.exists(f"{filled}/new")
        with pytest.raises(FileNotFoundError):
            fs.ls(f"{filled}/new")


def test_a_missing_bucket_is_not_taken_for_a_missing_file(fs: S3FileSystem) -> None:
    for ask in (fs.exists, fs.isdir, fs.isfile, fs.info, fs.ls):
        with pytest.raises(NoSuchBucketError):
            ask("s3://no-such-bucket/run")


def test_missing_permission_is_not_taken_for_a_missing_file(
    fs: S3FileSystem, filled: str, server: CountingServer
) -> None:
    server.fault(status=403, code="AccessDenied")
    for ask in (fs.exists, fs.isdir, fs.isfile):
        with pytest.raises(AccessDeniedError):
            ask(f"{filled}/run")


def test_find_walk_and_glob_see_every_file(fs: S3FileSystem, filled: str) -> None:
    bucket = filled.removeprefix("s3://")
    assert fs.find(f"{filled}/run") == [f"{bucket}/run/{name}" for name in ("a.ckpt", "b/.metadata", "b/x.distcp")]
    assert fs.find(f"{filled}/top") == [f"{bucket}/top"]
    assert fs.find(f"{filled}/run", maxdepth=1) == [f"{bucket}/run/a.ckpt"]
    assert fs.glob(f"{filled}/run/*.ckpt") == [f"{bucket}/run/a.ckpt"]
    assert [folder for folder, _, _ in fs.walk(f"{filled}/run")] == [f"{bucket}/run", f"{bucket}/run/b"]
    assert fs.find(f"{filled}/run", detail=True)[f"{bucket}/run/a.ckpt"]["size"] == 10


def test_files_are_read_and_written(fs: S3FileSystem, server: CountingServer) -> None:
    path = f"s3://{server.bucket}/dir//odd name+%.txt"
    with fs.open(path, "wb") as file:
        file.write(b"bytes")
    assert server.objects() == {"dir//odd name+%.txt": b"bytes"}
    with fs.open(path, "rb") as file:
        assert file.read(2) == b"by"
        file.seek(-1, 2)
        assert file.read() == b"s"
    with fs.open(path, "w", encoding="utf-8", newline="") as file:
        file.write("ä\n")
    with fs.open(path, "r", encoding="utf-8", newline="") as file:
        assert file.read() == "ä\n"
    with fsspec.open(path, "rb") as file:
        assert file.read() == "ä\n".encode()
    fs.pipe(path, b"")
    assert fs.cat(path) == b""


def test_appending_keeps_what_was_there(fs: S3FileSystem, server: CountingServer) -> None:
    path = f"s3://{server.bucket}/log.csv"
    for line in ("one\n", "two\n"):
        with fs.open(path, "a", newline="") as file:
            file.write(line)
    assert server.get("log.csv") == b"one\ntwo\n"


def test_a_file_that_exists_is_not_created_again(fs: S3FileSystem, filled: str, server: CountingServer) -> None:
    with pytest.raises(FileExistsError):
        fs.open(f"{filled}/top", "xb")
    with pytest.raises(FileExistsError):
        fs.pipe_file(f"{filled}/top", b"other", mode="create")
    assert server.get("top") == b"top"
    with pytest.raises(ValueError, match="mode"):
        fs.open(f"{filled}/top", "r+b")


@pytest.mark.parametrize("mode", ["xb", "x"])
def test_a_file_that_appears_while_another_is_created_stays(
    fs: S3FileSystem, server: CountingServer, mode: str
) -> None:
    file = fs.open(f"s3://{server.bucket}/new", mode)
    file.write("mine" if mode == "x" else b"mine")
    server.put("new", b"other")
    with pytest.raises(FileExistsError, match="there is an object of this key"):
        file.close()
    assert server.get("new") == b"other"
    fs.pipe_file(f"s3://{server.bucket}/newer", b"mine", mode="create")
    assert server.get("newer") == b"mine"


def test_a_file_that_appears_during_a_transaction_stays(fs: S3FileSystem, server: CountingServer) -> None:
    def create() -> None:
        with fs.transaction:
            with fs.open(f"s3://{server.bucket}/new", "xb") as file:
                file.write(b"mine")
            server.put("new", b"other")

    with pytest.raises(FileExistsError):
        create()
    assert server.get("new") == b"other"


@pytest.mark.parametrize("mode", ["wb", "w", "a"])
def test_an_exception_in_the_block_leaves_the_old_file(
    fs: S3FileSystem, filled: str, server: CountingServer, mode: str
) -> None:
    def interrupted() -> None:
        with fs.open(f"{filled}/top", mode) as file:
            file.write(b"half" if mode == "wb" else "half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    gc.collect()
    assert server.get("top") == b"top"


@pytest.mark.parametrize("mode", ["wb", "w"])
def test_a_file_dropped_without_close_leaves_the_old_one(
    fs: S3FileSystem, filled: str, server: CountingServer, mode: str
) -> None:
    file = fs.open(f"{filled}/top", mode)
    file.write(b"half" if mode == "wb" else "half")
    del file
    gc.collect()
    assert server.get("top") == b"top"


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_text_file_of_a_bad_encoding_leaves_the_old_file(
    fs: S3FileSystem, filled: str, server: CountingServer
) -> None:
    with pytest.raises(LookupError, match="no-such-encoding"):
        fs.open(f"{filled}/top", "w", encoding="no-such-encoding")
    gc.collect()
    assert server.get("top") == b"top"


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("mode", ["wb", "wt"])
@pytest.mark.parametrize("compression", sorted(filter(None, compr)))
def test_a_compressed_file_is_written_and_read_back(
    fs: S3FileSystem, server: CountingServer, compression: str, mode: str
) -> None:
    path = f"s3://{server.bucket}/notes"
    content = "line\n" * 100_000
    with fs.open(path, mode, compression=compression) as file:
        file.write(content.encode() if "b" in mode else content)
    del file
    gc.collect()
    assert server.get("notes") != content.encode()
    with fs.open(path, "rb", compression=compression) as file:
        assert file.read() == content.encode()
    with fs.open(path, "r", compression=compression) as file:
        assert file.read() == content


def test_a_compression_is_inferred_from_the_suffix(fs: S3FileSystem, server: CountingServer) -> None:
    for name in ("notes.gz", "notes"):
        with fs.open(f"s3://{server.bucket}/{name}", "wb", compression="infer") as file:
            file.write(b"notes")
    assert server.get("notes") == gzip.decompress(server.get("notes.gz")) == b"notes"


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("mode", ["wb", "w"])
@pytest.mark.parametrize("compression", sorted(filter(None, compr)))
def test_a_compressed_file_that_is_given_up_or_dropped_leaves_the_old_one(
    fs: S3FileSystem, filled: str, server: CountingServer, compression: str, mode: str
) -> None:
    half = b"half" if mode == "wb" else "half"
    with (
        contextlib.suppress(KeyboardInterrupt),
        fs.open(f"{filled}/top", mode, compression=compression) as file,
    ):
        file.write(half)
        raise KeyboardInterrupt
    file = fs.open(f"{filled}/top", mode, compression=compression)
    file.write(half)
    del file
    gc.collect()
    assert server.get("top") == b"top"


def test_a_compressed_file_whose_upload_fails_leaves_the_old_one(
    fs: S3FileSystem, filled: str, server: CountingServer
) -> None:
    file = fs.open(f"{filled}/top", "wb", compression="gzip")
    file.write(b"all")
    server.fault(method="PUT", status=403, code="AccessDenied")
    with pytest.raises(AccessDeniedError):
        file.close()
    assert server.get("top") == b"top"


def test_a_compression_that_cannot_be_is_refused_before_anything_is_sent(
    fs: S3FileSystem, filled: str, server: CountingServer
) -> None:
    with pytest.raises(ValueError, match="rot13"):
        fs.open(f"{filled}/top", "wb", compression="rot13")
    with pytest.raises(ValueError, match="write it anew"):
        fs.open(f"{filled}/top", "ab", compression="gzip")
    assert server.get("top") == b"top"


def test_a_file_of_a_transaction_takes_nothing_after_its_close(
    fs: S3FileSystem, filled: str, server: CountingServer
) -> None:
    with fs.transaction:
        file = fs.open(f"{filled}/top", "wb")
        file.write(b"all")
        file.close()
        with pytest.raises(ValueError, match="after its close"):
            file.write(b" and more")
    assert server.get("top") == b"all"


def test_removing_is_exact(fs: S3FileSystem, filled: str, server: CountingServer) -> None:
    fs.rm(f"{filled}/run/a.ckpt")
    with pytest.raises(IsADirectoryError):
        fs.rm(f"{filled}/run")
    fs.rm(f"{filled}/run", recursive=True)
    assert server.keys() == ["run2/c", "top"]
    with pytest.raises(FileNotFoundError):
        fs.rm(f"{filled}/run", recursive=True)
    for bucket in (filled, f"{filled}/"):
        with pytest.raises(ValueError, match="whole bucket"):
            fs.rm(bucket, recursive=True)
    fs.cp(f"{filled}/top", f"{filled}/copy")
    fs.mv(f"{filled}/copy", f"{filled}/moved")
    assert server.objects() == {"moved": b"top", "run2/c": b"run2/c", "top": b"top"}


@pytest.mark.parametrize("target", ["run/a.ckpt", "run/"])
def test_what_is_moved_onto_itself_stays(fs: S3FileSystem, filled: str, server: CountingServer, target: str) -> None:
    bucket = filled.removeprefix("s3://")
    with pytest.raises(ValueError, match=r"run/a\.ckpt cannot be copied or moved onto itself"):
        fs.mv(f"{filled}/run/a.ckpt", f"{bucket}/{target}")
    assert server.get("run/a.ckpt") == b"run/a.ckpt"


def test_a_folder_is_moved_as_a_whole(fs: S3FileSystem, filled: str, server: CountingServer) -> None:
    fs.mv(f"{filled}/run", f"{filled}/old", recursive=True)
    assert server.objects() == {
        "old/a.ckpt": b"run/a.ckpt",
        "old/b/.metadata": b"run/b/.metadata",
        "old/b/x.distcp": b"run/b/x.distcp",
        "run2/c": b"run2/c",
        "top": b"top",
    }
    assert not fs.exists(f"{filled}/run")
    with pytest.raises(FileNotFoundError):
        fs.mv(f"{filled}/run", f"{filled}/older", recursive=True)


@pytest.mark.parametrize(
    ("source", "target", "place"),
    [("odd", "new", "new/"), ("odd", "run2", "run2/odd/"), ("odd/", "run2", "run2/"), ("odd", "new/", "new/odd/")],
)
def test_each_key_of_a_folder_is_moved(
    fs: S3FileSystem, filled: str, server: CountingServer, source: str, target: str, place: str
) -> None:
    """Also those that fsspec's walk through folders does not find."""
    names = ["a", "b/", "b//c", "/d", "[1]", "b/odd/e"]
    for name in names:
        server.put(f"odd/{name}", name.encode())
    fs.mv(f"{filled}/{source}", f"{filled}/{target}", recursive=True)
    objects = server.objects()
    assert {key: data for key, data in objects.items() if key.startswith(place) and key != "run2/c"} == {
        f"{place}{name}": name.encode() for name in names
    }
    assert objects["run2/c"] == b"run2/c"
    assert not any(key.startswith("odd/") for key in objects)


@pytest.mark.parametrize(
    ("source", "target"),
    [*(("run", target) for target in ("run", "run/", "run/old", "run/old/")), ("run/", "run/old"), ("run/", "")],
)
def test_a_folder_is_not_moved_into_itself(
    fs: S3FileSystem, filled: str, server: CountingServer, source: str, target: str
) -> None:
    server.put("run/run/a.ckpt", b"below")  # which would replace another when it is moved up
    before = server.objects()
    with pytest.raises(ValueError, match="into itself"):
        fs.mv(f"{filled}/{source}", f"{filled}/{target}", recursive=True)
    assert server.objects() == before


def test_a_folder_with_a_marker_is_moved_to_the_root(fs: S3FileSystem, filled: str, server: CountingServer) -> None:
    server.put("run2/", b"")  # as some consoles make a folder
    fs.mv(f"{filled}/run2/", f"{filled}/", recursive=True)
    assert server.get("c") == b"run2/c"
    assert server.keys()[0] == "c"
    assert len(server.keys()) == 5


def test_a_bucket_is_not_moved(fs: S3FileSystem, filled: str, server: CountingServer) -> None:
    before = server.objects()
    with pytest.raises(ValueError, match="whole bucket"):
        fs.mv(filled, f"{filled}-other", recursive=True)
    assert server.objects() == before


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize("way", ["mv", "copy"])
def test_what_cannot_be_copied_is_an_error_and_stays(
    fs: S3FileSystem, filled: str, server: CountingServer, way: str, slash: str
) -> None:
    before = server.objects()
    with pytest.raises(S3Exception, match="no-such-bucket"):
        getattr(fs, way)(f"{filled}/run", f"s3://no-such-bucket/run{slash}", recursive=True)
    assert server.objects() == before


def test_what_appears_during_a_move_stays(fs: S3FileSystem, filled: str, server: CountingServer) -> None:
    server.fault(operation="CopyObject", times=1, delay_seconds=1)
    with ThreadPoolExecutor(1) as thread:
        moving = thread.submit(fs.mv, f"{filled}/run", f"{filled}/old", recursive=True)
        server.wait_for_requests(1, operation="CopyObject")
        server.put("run/new", b"new")
        moving.result()
    assert server.get("run/new") == b"new"


def test_the_settings_are_those_of_the_plugin_made_last(options: dict[str, Any], fs: S3FileSystem) -> None:
    assert fs.settings.endpoint == options["endpoint"]
    other = S3ClientConfig(access_key_id="other", secret_access_key="secret")
    S3LightningCheckpoint("eu-west-1", other, "http://127.0.0.1:1")
    assert (fs.settings.endpoint, fs.settings.s3client_config) == ("http://127.0.0.1:1", other)
    own = S3FileSystem(endpoint="http://127.0.0.1:2")
    assert own.settings.endpoint == "http://127.0.0.1:2"
    S3LightningCheckpoint(**options)
    assert own.settings.endpoint == "http://127.0.0.1:2"
    assert pickle.loads(pickle.dumps(own)).settings.endpoint == "http://127.0.0.1:2"


def test_an_option_of_s3fs_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="'anon'"):
        fsspec.filesystem("s3", anon=True)


def in_fresh_interpreter(program: str, *paths: Path) -> str:
    search = [*map(str, paths), *(path for path in sys.path if path)]
    program = f"import sys; sys.path[:0] = {search!r}\nimport fsspec\n{program}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


SHOW = "print(type(fsspec.filesystem('s3')).__module__)"


def test_importing_the_package_is_enough_where_s3fs_is_absent() -> None:
    assert in_fresh_interpreter(f"import s3torch_lightning\n{SHOW}") == "s3torch_lightning._filesystem"


def test_s3fs_is_left_alone_where_it_is_installed(tmp_path: Path) -> None:
    (tmp_path / "s3fs.py").write_text(
        "__version__ = '2026.1'\nfrom fsspec import AbstractFileSystem\n"
        "class S3FileSystem(AbstractFileSystem):\n    protocol = 's3'\n"
    )
    made = "import s3torch_lightning\nassert not s3torch_lightning.register_filesystem()\n"
    replaced = f"{made}{SHOW}\ns3torch_lightning.register_filesystem(replace=True)\n{SHOW}"
    assert in_fresh_interpreter(replaced, tmp_path).split() == ["s3fs", "s3torch_lightning._filesystem"]


def test_a_filesystem_that_the_user_registered_is_left_alone() -> None:
    program = (
        "class Mine(fsspec.AbstractFileSystem):\n    protocol = 's3'\n"
        "fsspec.register_implementation('s3', Mine)\n"
        f"import s3torch_lightning\nassert not s3torch_lightning.register_filesystem()\n{SHOW}"
    )
    assert in_fresh_interpreter(program) == "__main__"


def test_registering_again_changes_nothing(fs: S3FileSystem) -> None:
    assert register_filesystem()
    assert type(fsspec.filesystem("s3")) is type(fs)
