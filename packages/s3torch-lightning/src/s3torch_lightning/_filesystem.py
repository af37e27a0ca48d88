"""`S3FileSystem`: the part of fsspec's `s3://` that Lightning uses, over `s3core`."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, ClassVar

from fsspec import AbstractFileSystem
from fsspec.compression import compr
from fsspec.core import get_compression

from s3core import NoSuchBucketError, NoSuchKeyError, S3Client, S3ClientConfig, S3Exception, parse_s3_uri
from s3torch_datasets import S3Writer

from ._compressed_upload import CompressedUpload
from ._entries import Entry, entries_in, files_below, folder_of, forget_folder, look_up, make_folder
from ._files import DeferredWriter, TextWriter
from ._repairs import repair_imported
from ._settings import S3Settings, current_settings
from ._transaction import WholeTransaction
from ._uploads import pending_state, wait_for


class S3FileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec ships no type information
    """Files on S3 for whatever asks fsspec for `s3://`, where s3fs is not installed.

    Without arguments it uses the settings of the plugin made last. Keys are exact, nothing is cached, and a file that
    is written appears at its clean close or not at all. What is read, listed, copied or deleted is first waited for,
    where a plugin of this process is still saving or removing it in the background. A missing bucket and missing
    permission raise; they are not taken for a missing file.

    Write with `fs.open`, which gives the object up after an exception. `with fsspec.open("s3://…", "wb")` completes it
    even then: its block ends with a `close` that is not told of the exception.

    Args:
        region: AWS region of the buckets; None for the plugin's.
        endpoint: URL of an S3-compatible store; None for the plugin's.
        s3client_config: Settings of the client; None for the plugin's.
        **storage_options: Nothing else is known; refused by name.

    Raises:
        TypeError: An option is not known.
    """

    protocol = "s3"
    # fsspec caches instances by the text of their arguments, and a config's text hides its secrets.
    cachable = False
    root_marker = ""
    sep: ClassVar[str] = "/"
    _transaction: WholeTransaction | None

    def __init__(
        self,
        region: str | None = None,
        endpoint: str | None = None,
        s3client_config: S3ClientConfig | None = None,
        **storage_options: Any,
    ) -> None:
        unknown = sorted(set(storage_options) - {"use_listings_cache", "skip_instance_cache", "asynchronous", "loop"})
        if unknown:
            raise TypeError(
                f"s3:// by s3torch-lightning does not know the option {unknown[0]!r}; it takes region, endpoint and "
                "s3client_config, and s3fs takes others"
            )
        super().__init__(**storage_options)
        repair_imported()
        own = S3Settings(region, endpoint, s3client_config)
        self._own_settings = None if own == S3Settings() else own

    @property
    def settings(self) -> S3Settings:
        """How this filesystem reaches S3 now."""
        return self._own_settings or current_settings()

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        return os.fspath(path).removeprefix("s3://")

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        """List a folder, or the one file of that name.

        Args:
            path: `s3://bucket/folder`.
            detail: Return a dict for each entry instead of its name.
            **kwargs: Not used.

        Raises:
            FileNotFoundError: There is no such folder or file.
        """
        found = entries_in(self._client, *self._settled(path))
        return found if detail else [entry["name"] for entry in found]

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **kwargs: Any
    ) -> Any:
        """List all files below a folder by one flat listing.

        Args:
            path: `s3://bucket/folder`.
            maxdepth: How many levels to descend; None for all.
            withdirs: Name the folders too.
            detail: Return a dict of dicts instead of names.
            **kwargs: Not used.
        """
        if maxdepth is not None or withdirs:
            return super().find(path, maxdepth=maxdepth, withdirs=withdirs, detail=detail, **kwargs)
        self._settled(path)
        bucket, folder = self._folder(path)
        found = files_below(self._client, bucket, folder)
        if not found and folder and self.isfile(path):
            entry = self.info(path)
            found = {entry["name"]: entry}
        return found if detail else sorted(found)

    def info(self, path: str, **kwargs: Any) -> Entry:
        """What is at a path: a file, or a folder when some key lies below it.

        Args:
            path: `s3://bucket/key`.
            **kwargs: Not used.

        Raises:
            FileNotFoundError: Neither.
        """
        return look_up(self._client, *self._settled(path))

    def exists(self, path: str, **kwargs: Any) -> bool:
        """Whether there is a file or folder, counting a checkpoint whose upload is still under way.

        Args:
            path: `s3://bucket/key`.
            **kwargs: Not used.

        Raises:
            S3Exception: It cannot be told: no such bucket, no permission, no answer.
        """
        pending = self._pending(path)
        return self._entry(path) is not None if pending is None else pending

    def isdir(self, path: str) -> bool:
        """Whether some key lies below a path, or this process has made it as a folder.

        Args:
            path: `s3://bucket/folder`.
        """
        entry = self._entry(path)
        return entry is not None and entry["type"] == "directory"

    def isfile(self, path: str) -> bool:
        """Whether a path is an object, counting a checkpoint whose upload is still under way.

        Args:
            path: `s3://bucket/key`.
        """
        pending = self._pending(path)
        if pending is not None:
            return pending
        entry = self._entry(path)
        return entry is not None and entry["type"] == "file"

    def modified(self, path: str) -> datetime:
        """When an object was written; for a folder, when the last of its objects was.

        Args:
            path: `s3://bucket/key`.
        """
        entry = self.info(path)
        if entry["type"] == "file":
            return entry["LastModified"] or datetime.fromtimestamp(0, UTC)
        times = [below["LastModified"] for below in self.find(path, detail=True).values() if below["LastModified"]]
        return max(times, default=datetime.fromtimestamp(0, UTC))

    def created(self, path: str) -> datetime:
        """When an object was written: S3 knows no other time.

        Args:
            path: `s3://bucket/key`.
        """
        return self.modified(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Remember a folder for this process; nothing is written, for S3 has no folders.

        Args:
            path: `s3://bucket/folder`.
            exist_ok: Do not mind when it is there.

        Raises:
            FileExistsError: It is there, and `exist_ok` is False.
        """
        if not exist_ok and self.exists(path):
            raise FileExistsError(f"{path} exists")
        make_folder(*self._folder(path))

    def mkdir(self, path: str, create_parents: bool = True, **kwargs: Any) -> None:
        """Remember a folder for this process, as `makedirs` does.

        Args:
            path: `s3://bucket/folder`.
            create_parents: Not used.
            **kwargs: Not used.
        """
        self.makedirs(path, exist_ok=True)

    def rmdir(self, path: str) -> None:
        """Forget a folder that this process has made.

        Args:
            path: `s3://bucket/folder`.
        """
        forget_folder(*self._folder(path))

    def rm_file(self, path: str) -> None:
        """Delete one object.

        Args:
            path: `s3://bucket/key`.
        """
        self._client.delete_object(*self._settled(path))

    def rm(self, path: str | list[str], recursive: bool = False, maxdepth: int | None = None) -> None:
        """Delete files and, where asked for, whole folders.

        Args:
            path: `s3://bucket/key`, or several.
            recursive: Delete all keys below the path too.
            maxdepth: Not supported.

        Raises:
            ValueError: It is a whole bucket, or `maxdepth` is given.
            FileNotFoundError: There is nothing at the path.
        """
        if maxdepth is not None:
            raise ValueError("s3:// by s3torch-lightning deletes a folder as a whole; leave maxdepth out")
        for each in [path] if isinstance(path, str | os.PathLike) else path:
            bucket, key = self._split(each)
            if not key.strip("/"):
                raise ValueError(f"{each!r} is a whole bucket, which is not deleted; name a key in it")
            entry = self.info(each)
            if entry["type"] == "file":
                self._client.delete_object(bucket, key)
            elif not recursive:
                raise IsADirectoryError(f"s3://{bucket}/{key} is a folder; pass recursive=True to delete all of it")
            if recursive:
                for page in self._client.list_objects(bucket, self._folder(each)[1]):
                    self._client.delete_objects(bucket, page.keys)
                self.rmdir(each)

    def cp_file(self, path1: str, path2: str, **kwargs: Any) -> None:
        """Copy an object within the store; of a folder, which S3 does not have, there is nothing to copy.

        Args:
            path1: What to copy.
            path2: Where to.
            **kwargs: Not used.

        Raises:
            ValueError: Both are the same object, which a move would delete.
            S3Exception: There is no such bucket, or the copy failed.
        """
        source, target = self._settled(path1), self._split(path2)
        if source == target:
            raise ValueError(f"s3://{'/'.join(source)} cannot be copied or moved onto itself")
        try:
            self._client.copy_object(*source, *target)
        except NoSuchBucketError as error:
            raise S3Exception(str(error)) from error  # fsspec takes any FileNotFoundError for a file that is gone
        except NoSuchKeyError:
            if not self.isdir(path1):
                raise

    def mv(self, path1: str, path2: str, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any) -> None:
        """Move an object or, where asked for, a whole folder: what was there is deleted when all of it was copied.

        Args:
            path1: What to move.
            path2: Where to.
            recursive: Move all keys below the path too.
            maxdepth: Not supported.
            **kwargs: Not used.

        Raises:
            ValueError: A folder is to be moved into itself, an object onto itself, or a whole bucket; or `maxdepth` is
                given.
            FileNotFoundError: There is nothing at the path.
            S3Exception: A copy failed; nothing was deleted.
        """
        if maxdepth is not None:
            raise ValueError("s3:// by s3torch-lightning moves a folder as a whole; leave maxdepth out")
        if not recursive or self.isfile(path1):
            self.copy(path1, path2, on_error="raise")
            self.rm(path1)
            return
        bucket, source = self._settled(path1)[0], self._folder(path1)[1]
        if not source:
            raise ValueError(f"{path1!r} is a whole bucket, which is not moved; name a key in it")
        other, target = self._folder(path2)
        if not os.fspath(path1).endswith("/") and (os.fspath(path2).endswith("/") or self.isdir(path2)):
            target += os.path.basename(source.rstrip("/")) + "/"  # as fsspec copies a folder into one that is there
        # One list of what is copied and deleted: what appears meanwhile stays.
        moved = [key for page in self._client.list_objects(bucket, source) for key in page.keys]
        places = [target + key.removeprefix(source) for key in moved]
        if not moved:
            raise FileNotFoundError(f"{path1} does not exist")
        if bucket == other and (target.startswith(source) or not set(places).isdisjoint(moved)):
            raise ValueError(f"s3://{bucket}/{source} cannot be moved into itself, or over what it holds, to {path2}")
        for key, place in zip(moved, places, strict=True):
            if place:  # The root of a bucket needs no marker of a folder.
                self._client.copy_object(bucket, key, other, place)
        self._client.delete_objects(bucket, moved)
        self.rmdir(path1)

    def pipe_file(self, path: str, value: Any, mode: str = "overwrite", **kwargs: Any) -> None:
        """Write an object at once, or at the end of the transaction.

        Args:
            path: `s3://bucket/key`.
            value: Its bytes.
            mode: `"overwrite"`, or `"create"` to refuse what is there.
            **kwargs: Not used.
        """
        with self.open(path, "xb" if mode == "create" else "wb", size_hint=memoryview(value).nbytes or None) as file:
            file.write(value)

    def open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        cache_options: dict[str, Any] | None = None,
        compression: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Open an object; a file that is written as text or through compression keeps the promise of a binary one.

        Args:
            path: `s3://bucket/key`.
            mode: Reading, writing or appending (which rewrites the object), text or binary.
            block_size: Not used.
            cache_options: Not used.
            compression: The name of one of fsspec's compressions, or `"infer"` for that of the path's suffix.
            **kwargs: As for any filesystem of fsspec.

        Raises:
            ValueError: The compression is not known, or the object is to be appended to with one.
        """
        if mode.startswith("r"):
            return super().open(path, mode, block_size, cache_options, compression, **kwargs)
        compression = get_compression(os.fspath(path), compression)
        if compression is not None:
            if "a" in mode:
                raise ValueError(f"{path} cannot be appended to with compression {compression!r}; write it anew")
            kwargs["compress"] = compr[compression]
        if "b" in mode:
            return super().open(path, mode, block_size, cache_options, **kwargs)
        text = {name: kwargs.pop(name) for name in ("encoding", "errors", "newline") if name in kwargs}
        return TextWriter(super().open(path, mode.replace("t", "") + "b", block_size, cache_options, **kwargs), **text)

    def _open(
        self,
        path: str,
        mode: str = "rb",
        autocommit: bool = True,
        compress: Callable[..., Any] | None = None,
        size_hint: int | None = None,
        **kwargs: Any,
    ) -> Any:
        bucket, key = self._split(path)
        if mode == "rb":
            self._settled(path)
            return self.settings.checkpoint.reader(f"s3://{bucket}/{key}")
        if mode == "xb" and self.exists(path):
            raise FileExistsError(f"s3://{bucket}/{key} exists")
        if mode not in {"wb", "xb", "ab"}:
            raise ValueError(f"s3:// opens with mode 'rb', 'wb', 'xb' or 'ab', got {mode!r} for s3://{bucket}/{key}")
        upload = self._client.put_object(bucket, key, size_hint=size_hint, overwrite=mode != "xb")
        stream = upload if compress is None else CompressedUpload(upload, compress)
        writer = S3Writer(stream) if autocommit else DeferredWriter(stream, f"s3://{bucket}/{key}")
        if mode == "ab":
            self._settled(path)
            try:
                before = self._client.get_object(bucket, key).read_all()
            except NoSuchKeyError:
                before = b""
            writer.write(before)
        return writer

    @property
    def transaction(self) -> WholeTransaction:
        """A block at whose end all that was written in it becomes visible."""
        if self._transaction is None:
            self._transaction = WholeTransaction(self)
        return self._transaction

    def start_transaction(self) -> WholeTransaction:
        """Begin a transaction without a block."""
        self._intrans = True
        self._transaction = None
        return self.transaction

    @property
    def _client(self) -> S3Client:
        return self.settings.client

    def _entry(self, path: str) -> Entry | None:
        try:
            return look_up(self._client, *self._split(path))
        except NoSuchBucketError:  # also a FileNotFoundError; to go on would fail hours later, at the first save
            raise
        except FileNotFoundError:
            return None

    def _pending(self, path: str) -> bool | None:
        bucket, key = self._split(path)
        return pending_state(f"s3://{bucket}/{key}")

    def _settled(self, path: str) -> tuple[str, str]:
        bucket, key = self._split(path)
        wait_for(f"s3://{bucket}/{key}")
        return bucket, key

    def _split(self, path: str) -> tuple[str, str]:
        return parse_s3_uri("s3://" + self._strip_protocol(path))

    def _folder(self, path: str) -> tuple[str, str]:
        bucket, key = self._split(path)
        return bucket, folder_of(key)
