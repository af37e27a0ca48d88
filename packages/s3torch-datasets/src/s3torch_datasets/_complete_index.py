"""Asks for what is not known of objects that were named and not listed: a cache goes by their ETags."""

from __future__ import annotations

import threading
from dataclasses import replace

from s3core import S3Client, S3Exception
from s3torch_datasets._bucket_key_data import S3BucketKeyData
from s3torch_datasets._in_parallel import Report, call_in_parallel
from s3torch_datasets._index import ObjectIndex
from s3torch_datasets._progress import progress_bar


def complete_index(index: ObjectIndex, client: S3Client, *, progress: bool) -> ObjectIndex:
    """Returns the index with size and ETag of every object, by a HEAD for each of those that lack them.

    One that cannot be asked for stays as it is, so that its error comes when it is read.
    """
    unknown = index.rows_without_etag()
    if not unknown:
        return index

    def ask(row: int, report: Report, stop: threading.Event) -> S3BucketKeyData:
        one: S3BucketKeyData = index[row]
        version = None if one.object_info is None else one.object_info.version_id
        try:
            info = client.head_object(one.bucket, one.key, version_id=version)
        except S3Exception:
            return one
        finally:
            report(1)
        # Without a version that nobody asked for: s3:GetObject does not allow to name one.
        return S3BucketKeyData(one.bucket, one.key, replace(info, version_id=version))

    with progress_bar("Asking for ETags", " objects", shown=progress, total=len(unknown)) as bar:
        asked = list(call_in_parallel(ask, unknown, client.s3client_config.concurrency, bar.update))
    found = dict(zip(unknown, asked, strict=True))
    return ObjectIndex.of(found.get(row, one) for row, one in enumerate(index))
