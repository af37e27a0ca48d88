"""Tar shards: grouped as WebDataset does, streamed, shuffled, sharded, resumed, and refused when broken."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from operator import itemgetter, methodcaller
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from s3core import S3Exception
from s3torch_datasets import (
    BrokenArchiveError,
    ObjectFilter,
    S3MapDataset,
    S3ReaderConstructor,
    S3TarDataset,
    StreamingS3Reader,
)
from s3torch_datasets._tar import iterate_samples
from servers import CountingServer

# torchdata calls what torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")

Make = Callable[..., S3TarDataset[Any]]
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]

key = itemgetter("__key__")


def archive(members: Iterable[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def samples_of(data: bytes) -> list[tuple[str, dict[str, bytes]]]:
    return [(sample.key, sample.fields) for sample in iterate_samples(io.BytesIO(data), "s3://bucket/a.tar")]


@pytest.fixture
def make(counting_server: CountingServer, connection: dict[str, Any]) -> Make:
    return partial(S3TarDataset.from_prefix, f"s3://{counting_server.bucket}/shards/", **connection)


@pytest.fixture
def shards(counting_server: CountingServer) -> list[str]:
    """Puts 6 archives of 7 samples of different sizes, and returns the keys of all samples in order."""
    names = []
    for shard in range(6):
        members = []
        for number in range(7):
            names.append(f"{shard}/{number}")
            members += [(f"{names[-1]}.txt", names[-1].encode()), (f"{names[-1]}.bin", bytes(number * 300))]
        counting_server.put(f"shards/{shard}.tar", archive(members))
    return names


# The format

names = st.text(
    st.characters(codec="utf-8", exclude_characters="/.\x00", exclude_categories=["Cs"]), min_size=1, max_size=60
)


@pytest.mark.parametrize("form", FORMATS)
@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.tuples(names, names),
        st.dictionaries(st.sampled_from(["jpg", "cls", "seg.png"]), st.binary(max_size=1100), min_size=1),
    )
)
def test_members_are_grouped_by_name_up_to_the_first_dot(
    form: int, content: dict[tuple[str, str], dict[str, bytes]]
) -> None:
    members = [
        (f"{folder}/{name}.{extension}", data)
        for (folder, name), fields in content.items()
        for extension, data in fields.items()
    ]
    try:
        data = archive(members, form)
    except (ValueError, UnicodeEncodeError):
        return  # the format cannot say such a name
    assert samples_of(data) == [("/".join(path), fields) for path, fields in content.items()]


def test_names_follow_webdatasets_rule() -> None:
    data = archive(
        [
            ("a.b/c.d/one.tar.gz", b"1"),
            ("a.b/c.d/one.JPG", b"2"),
            ("two.cls", b"3"),
            ("README", b"no extension"),
            ("folder/.hidden", b"no name"),
            ("three.txt", b""),
        ]
    )
    assert samples_of(data) == [
        ("a.b/c.d/one", {"tar.gz": b"1", "jpg": b"2"}),
        ("two", {"cls": b"3"}),
        ("three", {"txt": b""}),
    ]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_whole(form: int) -> None:
    long = "directory/" * 30 + "ü漢" * 40
    assert samples_of(archive([(f"{long}.txt", b"x"), ("short.txt", b"y")], form)) == [
        (long, {"txt": b"x"}),
        ("short", {"txt": b"y"}),
    ]


def test_directories_and_links_are_passed_over() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for kind, name in ((tarfile.DIRTYPE, "folder.d"), (tarfile.SYMTYPE, "link.txt"), (tarfile.LNKTYPE, "hard.txt")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.txt"
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("a.txt"))
    assert samples_of(file.getvalue()) == [("a", {"txt": b""})]


def test_a_link_that_says_the_size_of_its_target_is_passed_over_alone() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind in (("a.txt", tarfile.REGTYPE), ("b.txt", tarfile.LNKTYPE), ("c.txt", tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, "a.txt" if kind == tarfile.LNKTYPE else "", 700
            tar.addfile(info, io.BytesIO(name.encode() * 140) if kind == tarfile.REGTYPE else None)
    assert samples_of(file.getvalue()) == [("a", {"txt": b"a.txt" * 140}), ("c", {"txt": b"c.txt" * 140})]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_sparse_member_is_an_error_and_not_other_bytes(form: int) -> None:
    info = tarfile.TarInfo("GNUSparseFile.0/a.bin")
    info.size = 515
    if form == tarfile.GNU_FORMAT:
        info.type = tarfile.GNUTYPE_SPARSE
    else:
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "a.bin", "GNU.sparse.realsize": "1048579"}
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        tar.addfile(info, io.BytesIO(bytes(515)))
    with pytest.raises(BrokenArchiveError, match=r"a\.tar: at offset \d+: a sparse member"):
        samples_of(file.getvalue())


def test_a_member_of_a_negative_size_is_an_error() -> None:
    header = bytearray(tarfile.TarInfo("a.txt").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 12  # -1 in base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(BrokenArchiveError, match="offset 0: a member of -1 bytes"):
        samples_of(bytes(header) + bytes(2048))


def pax_archive(records: bytes) -> bytes:
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, len(records)
    return info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512) + archive([("a.txt", b"data")])


@pytest.mark.parametrize("records", [b"2 " * 100_000, b"9" * 5000 + b" a=b\n", b"99 a=b\n", b"a=b\n", b"0 a=b\n"])
def test_a_malformed_extended_header_is_an_error(records: bytes) -> None:
    with pytest.raises(BrokenArchiveError, match="a malformed extended header"):
        samples_of(pax_archive(records))


def test_a_size_of_absurdly_many_digits_is_an_error() -> None:
    with pytest.raises(BrokenArchiveError, match="5000 digits"):
        samples_of(pax_archive(b"5011 size=" + b"9" * 5000 + b"\n"))


def test_many_records_of_an_extended_header_are_read() -> None:
    records = b"".join(b"14 key%05d=v\n" % number for number in range(60_000)) + b"14 path=b.txt\n"
    assert samples_of(pax_archive(records)) == [("b", {"txt": b"data"})]


def test_a_sample_can_be_read_again_from_its_range() -> None:
    data = archive([(f"{number}.txt", bytes(number)) for number in range(5)], tarfile.PAX_FORMAT)
    for sample in iterate_samples(io.BytesIO(data), "uri"):
        part = io.BytesIO(data[sample.start : sample.end])
        assert list(iterate_samples(part, "uri", sample.start, sample.end)) == [sample]


@given(st.integers(0, 10_000))
def test_an_archive_that_is_cut_anywhere_is_an_error_with_the_offset(cut: int) -> None:
    data = archive([("a.txt", bytes(700)), ("b.txt", bytes(300))])
    end_mark = 512 + 1024 + 512 + 512
    cut %= end_mark
    with pytest.raises(BrokenArchiveError, match=rf"s3://bucket/a.tar.*offset {cut}\b"):
        samples_of(data[:cut])


@pytest.mark.parametrize("data", [b"\x1f\x8b" + bytes(range(256)) * 4, b"x" * 2000])
def test_what_is_no_archive_is_an_error(data: bytes) -> None:
    with pytest.raises(BrokenArchiveError, match="offset 0"):
        samples_of(data)


def test_a_second_member_of_the_same_name_is_an_error() -> None:
    with pytest.raises(BrokenArchiveError, match="second member"):
        samples_of(archive([("a.txt", b"1"), ("a.TXT", b"2")]))


# The dataset


def test_all_samples_come_in_order_as_dictionaries(make: Make, shards: list[str]) -> None:
    samples = list(make())
    assert [key(sample) for sample in samples] == shards
    assert samples[8] == {"__key__": "1/1", "txt": b"1/1", "bin": bytes(300)}


def test_other_objects_of_the_prefix_are_passed_over(
    make: Make, shards: list[str], counting_server: CountingServer
) -> None:
    counting_server.put("shards/index.json", b"{}")
    assert len(list(make())) == 42
    with pytest.raises(BrokenArchiveError, match=r"index\.json"):
        list(make(object_filter=ObjectFilter(suffix=".json")))


@pytest.mark.parametrize(
    "constructor",
    [S3ReaderConstructor.sequential(), S3ReaderConstructor.range_based(), S3ReaderConstructor.streaming(window=4000)],
)
def test_any_reader_will_do(make: Make, shards: list[str], constructor: Any) -> None:
    assert list(map(key, make(reader_constructor=constructor))) == shards


def test_a_shuffle_mixes_shards_and_samples_differently_each_epoch(make: Make, shards: list[str]) -> None:
    dataset = make(transform=key, shuffle=True, seed=3, shuffle_buffer=10)
    orders = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        orders.append(list(dataset))
        assert sorted(orders[-1]) == sorted(shards)
    assert orders[0] == orders[2] != orders[1]
    assert len({name[0] for name in orders[0][:7]}) > 1


def test_a_buffer_of_0_shuffles_shards_only(make: Make, shards: list[str]) -> None:
    order = list(make(transform=key, shuffle=True, shuffle_buffer=0))
    assert [name[2] for name in order] == list("0123456") * 6
    assert order != shards


def test_shards_are_split_over_ranks_and_workers(make: Make, shards: list[str]) -> None:
    seen: Counter[str] = Counter()
    for rank in (0, 1):
        dataset = make(transform=key, enable_sharding=True, rank=rank, world_size=2, shuffle=True)
        seen.update(DataLoader(dataset, batch_size=None, num_workers=2))
    assert seen == Counter(shards)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(step=st.integers(0, 42), buffer=st.sampled_from([None, 0, 1, 5, 100]))
def test_resuming_at_any_step_equals_the_uninterrupted_run(
    make: Make, shards: list[str], step: int, buffer: int | None
) -> None:
    options = {} if buffer is None else {"shuffle": True, "shuffle_buffer": buffer, "seed": 4}
    first, second = make(**options), make(**options)
    whole = list(first)
    iterator = iter(first)
    head = [next(iterator) for _ in range(step)]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert head + list(second) == whole
    assert list(second) == whole


def test_resuming_fetches_shards_that_are_done_no_more(
    make: Make, shards: list[str], counting_server: CountingServer
) -> None:
    first, second = make(transform=key), make(transform=key)
    iterator = iter(first)
    for _ in range(21):
        next(iterator)
    second.load_state_dict(first.state_dict())
    iterator.close()  # type: ignore[attr-defined]
    len(second.index)
    counting_server.wait_for_requests(6, operation="GetObject")
    counting_server.clear()
    assert list(second) == shards[21:]
    fetched = {r.key for r in counting_server.requests if r.operation == "GetObject"}
    assert fetched <= {f"shards/{number}.tar" for number in (2, 3, 4, 5)}


def test_stateful_workers_resume_exactly(make: Make, shards: list[str]) -> None:
    def make_loader() -> StatefulDataLoader:
        dataset = make(transform=key, enable_sharding=True, shuffle=True, shuffle_buffer=6)
        return StatefulDataLoader(dataset, batch_size=4, num_workers=2)

    whole = list(make_loader())
    loader = make_loader()
    iterator = iter(loader)
    head = [next(iterator) for _ in range(5)]
    resumed = make_loader()
    resumed.load_state_dict(loader.state_dict())
    assert head + list(resumed) == whole


def test_a_broken_shard_raises_and_the_iteration_goes_on_behind_it(
    make: Make, shards: list[str], counting_server: CountingServer
) -> None:
    whole = counting_server.get("shards/1.tar")
    counting_server.put("shards/1.tar", whole[:3000])
    iterator = iter(make(transform=key))
    seen = [next(iterator) for _ in range(7)]
    with pytest.raises(BrokenArchiveError, match=r"shards/1\.tar.*offset 3000"):
        seen += iterator
    seen += iterator
    assert seen == shards[:8] + shards[14:]


def test_skip_leaves_out_broken_shards_and_samples_that_cannot_be_made(
    make: Make, shards: list[str], counting_server: CountingServer
) -> None:
    counting_server.put("shards/1.tar", b"no archive")
    counting_server.delete("shards/2.tar")

    def transform(sample: dict[str, Any]) -> str:
        if sample["__key__"] == "0/3":
            raise ValueError("cannot decode")
        return key(sample)

    dataset = make(transform=transform, on_error="skip")
    assert list(dataset) == shards[:3] + shards[4:7] + shards[21:]


def test_an_error_in_the_transform_names_shard_and_sample(make: Make, shards: list[str]) -> None:
    def transform(sample: dict[str, Any]) -> str:
        raise ValueError("cannot decode")

    with pytest.raises(ValueError, match="cannot decode") as caught:
        next(iter(make(transform=transform)))
    assert "0/0" in caught.value.__notes__[0]
    assert "shards/0.tar" in caught.value.__notes__[1]


def test_the_shuffle_buffer_belongs_to_tar_datasets(make_iterable: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="S3TarDataset"):
        make_iterable(shuffle_buffer=5)
    with pytest.raises(ValueError, match="shuffle_buffer"):
        S3TarDataset.from_prefix("s3://bucket/x", shuffle_buffer=-1)


def test_an_iterator_that_is_dropped_closes_its_readers(make: Make, counting_server: CountingServer) -> None:
    counting_server.put("shards/large.tar", archive([(f"{n}.bin", bytes(2**20)) for n in range(40)]))
    iterator = iter(make(transform=key))
    next(iterator)
    del iterator
    assert counting_server.counters()["bytes_sent"] < 30 * 2**20


class Interrupting(StreamingS3Reader):
    """Raises KeyboardInterrupt in the n-th read, as Ctrl-C may."""

    reads = interrupt_at = 0

    def read(self, size: int | None = None) -> bytes:
        Interrupting.reads += 1
        if Interrupting.reads == self.interrupt_at:
            raise KeyboardInterrupt
        return super().read(size)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("read", [1, 20, 42, 100])
def test_an_iteration_goes_on_where_it_was_interrupted(
    make: Make, shards: list[str], shuffle: bool, read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Interrupting, "reads", 0)
    monkeypatch.setattr(Interrupting, "interrupt_at", read)
    options: dict[str, Any] = {"transform": key, "shuffle": shuffle, "shuffle_buffer": 5 if shuffle else None}
    whole = list(make(**options))
    dataset, other = make(**options, reader_constructor=Interrupting), make(**options)
    iterator = iter(dataset)
    seen: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        seen.extend(iterator)
    assert seen + list(copy_of_rest(dataset, other)) == whole
    assert seen + list(iterator) == whole


@pytest.mark.parametrize("options", [{}, {"shuffle": True, "shuffle_buffer": 5}, {"shuffle": True}])
@pytest.mark.parametrize("call", [1, 9, 42])
def test_the_sample_whose_transform_was_interrupted_comes_again(
    make: Make, shards: list[str], options: dict[str, Any], call: int
) -> None:
    whole = list(make(transform=key, **options))
    calls = itertools.count(1)

    def interrupted_once(sample: dict[str, Any]) -> str:
        if next(calls) == call:
            raise KeyboardInterrupt
        return key(sample)

    dataset, other = make(transform=interrupted_once, **options), make(transform=key, **options)
    iterator = iter(dataset)
    seen: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        seen.extend(iterator)
    assert len(seen) == call - 1
    other.load_state_dict(dataset.state_dict())
    assert seen + list(other) == whole
    assert seen + list(iterator) == whole


def copy_of_rest(dataset: S3TarDataset[Any], other: S3TarDataset[Any]) -> Iterable[Any]:
    """What another dataset reads that goes on where this one stands."""
    other.load_state_dict(dataset.state_dict())
    return other


def test_an_iteration_that_was_closed_is_over_and_can_be_resumed(make: Make, shards: list[str]) -> None:
    dataset, other = make(transform=key), make(transform=key)
    iterator: Any = iter(dataset)
    seen = [next(iterator) for _ in range(9)]
    iterator.close()
    assert list(iterator) == []
    assert seen + list(copy_of_rest(dataset, other)) == shards


def test_a_sample_of_the_buffer_that_cannot_be_fetched_raises_once_and_the_others_follow(
    make: Make, shards: list[str], counting_server: CountingServer
) -> None:
    options: dict[str, Any] = {"transform": key, "shuffle": True, "shuffle_buffer": 5}
    first, second = make(**options), make(**options)
    iterator = iter(first)
    head = [next(iterator) for _ in range(8)]
    state = first.state_dict()
    second.load_state_dict(state)
    resumed = iter(second)
    row, start, end = state["detail"]["buffer"][3]
    counting_server.fault(key=second.index[row].key, range=f"bytes={start}-{end - 1}", status=500)
    with pytest.raises(S3Exception):
        head.append(next(resumed))
    seen = head + list(resumed)
    assert len(seen) == len(set(seen)) == len(shards) - 1
    assert set(seen) < set(shards)


def test_a_replacement_is_handed_out_for_what_is_broken(
    make: Make, shards: list[str], counting_server: CountingServer
) -> None:
    counting_server.put("shards/1.tar", counting_server.get("shards/1.tar")[:3000])
    dataset = make(transform=key, on_error=lambda error, uri: uri.rpartition("/")[2])
    assert list(dataset) == [*shards[:8], "1.tar", *shards[14:]]
    assert dataset.skipped == 0


def test_a_replacement_of_a_sample_in_the_buffer_takes_its_turn(
    make: Make, shards: list[str], counting_server: CountingServer
) -> None:
    options: dict[str, Any] = {"transform": key, "shuffle": True, "shuffle_buffer": 5}
    whole = list(make(**options))
    first, second = make(**options), make(**options, on_error=lambda error, uri: "instead")
    iterator = iter(first)
    head = [next(iterator) for _ in range(8)]
    state = first.state_dict()
    second.load_state_dict(state)
    row, start, end = state["detail"]["buffer"][3]
    counting_server.fault(key=second.index[row].key, range=f"bytes={start}-{end - 1}", status=500)
    seen = head + list(second)
    assert seen.count("instead") == 1
    assert [name for name in whole if name in seen] == [name for name in seen if name != "instead"]
    assert whole[seen.index("instead")] not in seen


def test_skip_leaves_out_samples_of_the_buffer_that_are_gone(
    make: Make, shards: list[str], counting_server: CountingServer
) -> None:
    options: dict[str, Any] = {"transform": key, "shuffle": True, "shuffle_buffer": 100}
    first, second = make(**options), make(**options, on_error="skip")
    head = [next(iterator := iter(first))]
    second.load_state_dict(first.state_dict())
    len(second.index)
    counting_server.delete("shards/3.tar")
    rest = list(second)
    gone = [name for name in shards if name.startswith("3/") and name not in head]
    assert sorted(head + rest + gone) == sorted(shards)
    assert second.skipped == len(gone)
    assert len(list(iterator)) == len(shards) - 1


def test_the_second_epoch_over_cached_shards_sends_no_get(
    make: Make, shards: list[str], counting_server: CountingServer, tmp_path: Path
) -> None:
    counting_server.put("shards/large.tar", archive([(f"{n}.bin", bytes(2**20)) for n in range(10)]))
    dataset = make(transform=key, cache_dir=tmp_path)
    first = list(dataset)
    counting_server.clear()
    assert list(dataset) == first
    assert counting_server.operations() == []


CIPHER = bytes(byte ^ 90 for byte in range(256))


class DecryptingReader(StreamingS3Reader):
    def read(self, size: int | None = None) -> bytes:
        return super().read(size).translate(CIPHER)


class DecryptingFile:
    def __init__(self, *arguments: Any) -> None:
        self._reader = StreamingS3Reader(*arguments)

    def read(self, size: int) -> bytes:
        return self._reader.read(size).translate(CIPHER)

    def seek(self, offset: int) -> int:
        return self._reader.seek(offset)

    def close(self) -> None:
        self._reader.close()


@pytest.mark.parametrize("constructor", [DecryptingReader, DecryptingFile])
def test_what_a_reader_of_ones_own_makes_of_a_shard_is_not_cached_as_the_shard(
    make: Make, counting_server: CountingServer, connection: dict[str, Any], tmp_path: Path, constructor: Any
) -> None:
    # Larger than the reader's first block, which would be the whole object.
    stored = archive([(f"{number}.bin", bytes(2**20)) for number in range(10)]).translate(CIPHER)
    counting_server.put("shards/0.tar", stored)
    dataset = make(transform=key, cache_dir=tmp_path, reader_constructor=constructor)
    for _ in range(2):
        assert list(dataset) == [str(number) for number in range(10)]
    uri = f"s3://{counting_server.bucket}/shards/0.tar"
    (as_it_is,) = S3MapDataset.from_objects(
        uri, transform=methodcaller("read"), cache_dir=tmp_path, **connection
    ).__getitems__([0])
    assert as_it_is == stored


@pytest.mark.parametrize("constructor", [DecryptingReader, DecryptingFile])
def test_the_samples_of_the_buffer_come_again_through_a_reader_of_ones_own(
    make: Make, counting_server: CountingServer, constructor: Any
) -> None:
    members = [(f"{number}.bin", bytes(1000)) for number in range(30)]
    counting_server.put("shards/0.tar", archive(members).translate(CIPHER))
    options = {"transform": key, "reader_constructor": constructor, "shuffle": True, "shuffle_buffer": 8}
    dataset = make(**options)
    iterator = iter(dataset)
    read = [next(iterator) for _ in range(9)]
    resumed = make(**options)
    resumed.load_state_dict(dataset.state_dict())
    rest = list(resumed)
    assert rest == list(iterator)
    assert sorted(read + rest) == sorted(str(number) for number in range(30))


def test_a_shard_that_was_left_early_is_not_cached(
    make: Make, shards: list[str], counting_server: CountingServer, tmp_path: Path
) -> None:
    counting_server.put("shards/0.tar", archive([(f"{n}.bin", bytes(2**20)) for n in range(20)]))
    iterator = iter(make(transform=key, cache_dir=tmp_path))
    next(iterator)
    del iterator
    assert [path for path in tmp_path.glob("*/*") if path.stat().st_size > 2**20] == []
