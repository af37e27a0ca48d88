"""What lies at a path, as fsspec names it: files, and folders, of which S3 has none but those that keys spell."""

from __future__ import annotations

from typing import Any

from s3core import NoSuchKeyError, ObjectInfo, S3Client

Entry = dict[str, Any]

# Folders that this process has "made": S3 has none, and Lightning looks for a folder right after making it.
_made_folders: set[tuple[str, str]] = set()


def folder_of(key: str) -> str:
    """The prefix of all keys below a key; that of a whole bucket is empty.

    Args:
        key: A key or a folder, with or without its last slash.
    """
    return key if not key or key.endswith("/") else key + "/"


def make_folder(bucket: str, folder: str) -> None:
    """Remember a folder for this process.

    Args:
        bucket: Its bucket.
        folder: Its prefix.
    """
    _made_folders.add((bucket, folder))


def forget_folder(bucket: str, folder: str) -> None:
    """Forget a folder that this process has made, and those that it has made in it.

    Args:
        bucket: Its bucket.
        folder: Its prefix.
    """
    _made_folders.difference_update([each for each in list(_made_folders) if _is_below(each, bucket, folder)])


def look_up(client: S3Client, bucket: str, key: str) -> Entry:
    """What is at a key: a file, or a folder when some key lies below it.

    Args:
        client: How to reach S3.
        bucket: The bucket.
        key: The key; empty for the bucket itself.

    Raises:
        NoSuchKeyError: Neither.
    """
    if key and not key.endswith("/"):
        found = client.find_object(bucket, key)
        if found is not None:
            return _file(bucket, key, found)
    folder = folder_of(key)
    page = next(client.list_objects(bucket, folder, max_keys=1), None)
    if (page is not None and page.keys) or _is_made(bucket, folder) or not key:
        return _folder(bucket, key.removesuffix("/"))
    raise NoSuchKeyError(f"there is neither an object nor a folder at s3://{bucket}/{key}")


def entries_in(client: S3Client, bucket: str, key: str) -> list[Entry]:
    """The files and folders of a folder, in the order of their names, or the one file of that key.

    Args:
        client: How to reach S3.
        bucket: The bucket.
        key: The folder or the file.

    Raises:
        NoSuchKeyError: There is no such folder or file.
    """
    folder = folder_of(key)
    entries: dict[str, Entry] = {}
    for page in client.list_objects(bucket, folder, "/"):
        for prefix in page.common_prefixes:
            entries[prefix] = _folder(bucket, prefix.removesuffix("/"))
        for info in page.object_info:
            if info.key != folder:  # the object of length 0 that some tools leave to mark a folder
                entries[info.key] = _file(bucket, info.key, info)
    if not entries and not _is_made(bucket, folder):
        entry = look_up(client, bucket, key)
        if entry["type"] == "file":
            entries[entry["name"]] = entry
    return sorted(entries.values(), key=lambda entry: str(entry["name"]))


def files_below(client: S3Client, bucket: str, folder: str) -> dict[str, Entry]:
    """All files below a folder by their names, from one flat listing.

    Args:
        client: How to reach S3.
        bucket: The bucket.
        folder: The folder's prefix.
    """
    return {
        f"{bucket}/{info.key}": _file(bucket, info.key, info)
        for page in client.list_objects(bucket, folder)
        for info in page.object_info
    }


def _is_made(bucket: str, folder: str) -> bool:
    return any(_is_below(made, bucket, folder) for made in list(_made_folders))


def _is_below(made: tuple[str, str], bucket: str, folder: str) -> bool:
    return made[0] == bucket and made[1].startswith(folder)


def _file(bucket: str, key: str, info: ObjectInfo) -> Entry:
    return {
        "name": f"{bucket}/{key}",
        "size": info.size,
        "type": "file",
        "LastModified": info.last_modified,
        "ETag": info.etag,
    }


def _folder(bucket: str, key: str) -> Entry:
    name = f"{bucket}/{key}" if key else bucket
    return {"name": name, "size": 0, "type": "directory", "LastModified": None, "ETag": None}
