"""One iteration over tar shards: streams them one after the other, shuffles through a buffer, keeps account."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from s3torch_datasets._dataset import T_co
from s3torch_datasets._errors import SKIP, ErrorHandler, replace_stop_iteration
from s3torch_datasets._fork_count import ForkCount
from s3torch_datasets._object_source import ObjectSource
from s3torch_datasets._permutation import mix_number
from s3torch_datasets._protocol import S3ReaderConstructorProtocol
from s3torch_datasets._resume import Progress, State
from s3torch_datasets._shard_rows import ShardRows
from s3torch_datasets._shared_iterator import SharedIterator
from s3torch_datasets._tar import TarSample
from s3torch_datasets._tar_shard import TarShard

_AHEAD_BYTES = 32 * 2**20
_MAX_SHARDS_AHEAD = 16
_SAMPLES_AT_A_TIME = 64


@dataclass(slots=True)
class TarPosition:
    """Where an iteration stands within its shards.

    Args:
        offset: In the current shard, of the sample that is read next.
        draws: Number of draws from the buffer so far.
        origins: Of each sample in the buffer: row of its shard in the index, and its range of bytes there.
    """

    offset: int = 0
    draws: int = 0
    origins: list[tuple[int, int, int]] = field(default_factory=list)

    @classmethod
    def of_detail(cls, detail: State) -> TarPosition:
        """Returns what `detail` returned."""
        if not detail:
            return cls()
        return cls(detail["offset"], detail["draws"], [(row, start, end) for row, start, end in detail["buffer"]])

    def detail(self) -> State:
        """Returns it as a part of a state; empty between shards when the buffer is."""
        if not self.offset and not self.origins:
            return {}
        return {"offset": self.offset, "draws": self.draws, "buffer": [list(origin) for origin in self.origins]}


@dataclass(slots=True)
class Replacement:
    """What `on_error` returned instead of a sample, or of the rest of a shard; it is handed out as it is.

    Args:
        sample: What it returned.
    """

    sample: Any


class TarIterator(SharedIterator[T_co]):
    """Makes the samples of one iteration.

    It goes on after an error that it raised, with the next sample or shard, and after Ctrl-C where it was interrupted.

    Args:
        rows: Rows of the archives in the index.
        get_source: Returns the object of a row.
        constructor: Makes the readers of shards.
        transform: Makes a sample of a dictionary.
        on_error: What to do with errors.
        progress: What to advance.
        buffer_size: Number of samples to draw from; 0 for the order of the shards.
        seed: Chooses the draws.
    """

    def __init__(
        self,
        rows: ShardRows,
        get_source: Callable[[int], ObjectSource],
        constructor: S3ReaderConstructorProtocol,
        transform: Callable[[dict[str, Any]], T_co],
        on_error: ErrorHandler,
        progress: Progress,
        *,
        buffer_size: int,
        seed: int,
    ) -> None:
        super().__init__()
        self._rows = rows
        self._get_source = get_source
        self._constructor = constructor
        self._transform = transform
        self._on_error = on_error
        self._progress = progress
        self._buffer_size = buffer_size
        place = progress.place
        self._draw_key = mix_number(
            mix_number(mix_number(seed) ^ progress.epoch) ^ (place.rank * place.num_workers + place.worker)
        )
        self._position = TarPosition.of_detail(progress.detail)
        progress.describe = self._position.detail
        self._buffer: list[TarSample | Replacement] = []
        self._coming: deque[TarShard] = deque()
        self._shard: TarShard | None = None
        self._samples: Iterator[TarSample] | None = None
        self._read: tuple[TarSample | Replacement, tuple[int, int, int]] | None = None
        self._forks = ForkCount.now
        self._is_closed = False

    def _next(self) -> T_co:
        while not (self._progress.finished or self._is_closed):
            if len(self._buffer) < len(self._position.origins):
                self._read_buffer_again()
            found = self._next_sample()
            if found is None:
                self._progress.finished = True
                break
            sample, row, drawn = found
            try:
                outcome: T_co = sample.sample if isinstance(sample, Replacement) else self._make(sample, row)
            except Exception:
                self._advance(drawn)  # the error stands for the sample
                raise
            self._advance(drawn)
            if outcome is not SKIP:
                return outcome
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Stops what is on its way, and the iteration with it."""
        self._is_closed = True
        if self._shard is not None:
            self._shard.close()
            self._shard = self._samples = None
        while self._coming:
            self._coming.popleft().close()

    def _make(self, sample: TarSample, row: int) -> T_co:
        try:
            return self._transform({"__key__": sample.key, **sample.fields})
        except Exception as error:
            uri = self._get_source(row).uri
            error = replace_stop_iteration(error, "the transform", uri)
            error.add_note(f"in the sample {sample.key!r}")
            outcome: T_co = self._on_error(error, uri)
            return outcome

    def _next_sample(self) -> tuple[TarSample | Replacement, int, int | None] | None:
        """Returns the sample to hand out, the row of its shard, and its place in the buffer where it is drawn from it.

        It comes again until `_advance` is called.
        """
        position = self._position
        while True:
            if self._read is None:
                self._read = self._read_sample()
            if self._read is None:
                break
            sample, origin = self._read
            if not self._buffer_size or isinstance(sample, Replacement):
                return sample, origin[0], None
            if len(self._buffer) >= self._buffer_size:
                break
            self._read, position.offset = None, origin[2]
            position.origins.append(origin)
            self._buffer.append(sample)  # what Ctrl-C leaves out here is read again
        if not self._buffer:
            return None
        drawn = mix_number(self._draw_key ^ (position.draws + 1)) % len(self._buffer)
        return self._buffer[drawn], position.origins[drawn][0], drawn

    def _advance(self, drawn: int | None) -> None:
        """Takes account of the sample that `_next_sample` returned; in a step, for Ctrl-C only comes behind calls."""
        position, read, buffer = self._position, self._read, self._buffer
        if read is not None:
            self._read, position.offset = None, read[1][2]
        if drawn is None:
            return
        position.draws += 1
        if read is not None:
            buffer[drawn], position.origins[drawn] = read
        else:
            buffer[drawn], position.origins[drawn] = buffer[-1], position.origins[-1]
            del buffer[-1], position.origins[-1]

    def _read_sample(self) -> tuple[TarSample | Replacement, tuple[int, int, int]] | None:
        """Reads the next sample of the shards in their order."""
        if self._forks != ForkCount.now:
            if self._shard is not None:
                self._open_shard_again()  # a thread of the parent may be in its generator, and never leaves it here
            self._forks = ForkCount.now
        while self._samples is not None or self._open_next_shard():
            assert self._samples is not None
            assert self._shard is not None
            try:
                sample = next(self._samples, None)
            except Exception as error:
                uri, row = self._shard.uri, self._shard.row
                self._end_shard()
                outcome = self._on_error(error, uri)  # where it does not raise, the rest of the shard is left out
                if outcome is not SKIP:
                    return Replacement(outcome), (row, 0, 0)
                continue
            except BaseException:
                self._open_shard_again()
                raise
            if sample is None:
                self._end_shard()
                continue
            return sample, (self._shard.row, sample.start, sample.end)
        return None

    def _open_next_shard(self) -> bool:
        if not self._coming:
            self._add_shard()
        if not self._coming:
            return False
        # Ctrl-C comes behind a call: before the first of these lines takes effect, or after both.
        self._shard, self._samples = self._coming[0], self._coming[0].samples(self._position.offset)
        self._coming.popleft()
        while sum(shard.first_bytes for shard in self._coming) < _AHEAD_BYTES:
            if len(self._coming) == _MAX_SHARDS_AHEAD or not self._add_shard():
                break
            self._coming[-1].prefetch()
        return True

    def _add_shard(self) -> bool:
        row = self._rows.get(self._progress.position + len(self._coming) + (self._shard is not None))
        if row is None:
            return False
        self._coming.append(TarShard(row, self._get_source(row), self._constructor))
        return True

    def _end_shard(self) -> None:
        if self._shard is not None:
            self._shard.close()
        self._shard = self._samples = None
        self._position.offset = 0
        self._progress.position += 1

    def _open_shard_again(self) -> None:
        """Lets the shard go on behind its last sample, where its generator cannot: one that was interrupted is over."""
        assert self._shard is not None
        self._shard.close()
        self._coming.appendleft(self._shard)
        self._shard = self._samples = None

    def _read_buffer_again(self) -> None:
        """Fetches the samples that were in the buffer when the state was saved, their own bytes alone.

        A sample that cannot be had is left out or replaced where `on_error` says so; else its error is raised once.
        """
        while len(self._buffer) < len(self._position.origins):
            # Each may take a connection, or a file of the cache.
            self._read_ranges(self._position.origins[len(self._buffer) :][:_SAMPLES_AT_A_TIME])

    def _read_ranges(self, origins: list[tuple[int, int, int]]) -> None:
        """Puts the next samples into the buffer."""
        shards = [TarShard(row, self._get_source(row), self._constructor) for row, _, _ in origins]
        try:
            for shard, (_, start, end) in zip(shards, origins, strict=True):
                shard.prefetch_sample(start, end)
            for shard, origin in zip(shards, origins, strict=True):
                _, start, end = origin
                try:
                    sample = shard.read_sample(start, end)
                except Exception as error:
                    place = len(self._buffer)
                    del self._position.origins[place]
                    outcome = self._on_error(error, shard.uri)
                    if outcome is not SKIP:
                        self._position.origins.insert(place, origin)
                        self._buffer.append(Replacement(outcome))
                else:
                    self._buffer.append(sample)
        finally:
            for shard in shards:
                shard.close()

    def __del__(self) -> None:
        if hasattr(self, "_coming"):
            self.close()
