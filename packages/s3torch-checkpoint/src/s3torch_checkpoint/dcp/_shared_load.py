"""Carries out a share plan: each round reads this rank's blocks, agrees with the others, and passes blocks on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

import torch.distributed as dist

from .._errors import CheckpointError
from .._fetch import Piece
from .._fetch_plan import Want
from ._exchange import BlockExchange, RankAgreement
from ._sharing import Identity, Share, SharePlan


class _HeldPiece:
    """A piece whose bytes are kept when it has been fetched, until they have been passed on."""

    def __init__(self, piece: Piece) -> None:
        self._piece = piece
        self.want: Want = piece.want
        self.memory_bytes = piece.memory_bytes
        self.data: memoryview | None = None

    def open(self) -> memoryview:
        """The memory of the piece itself."""
        self.data = self._piece.open()
        return self.data

    def finish(self) -> None:
        """Keep the bytes."""

    def release(self) -> None:
        """Use the bytes for this rank, and let go of them."""
        self.data = None
        self._piece.finish()


def load_shared(
    plan: SharePlan,
    make_pieces: Callable[[], tuple[Sequence[Piece], Mapping[Identity, Sequence[Piece]]]],
    fetch: Callable[[Sequence[Piece]], None],
    group: dist.ProcessGroup | None,
    timeout_seconds: float,
) -> None:
    """Load what this rank needs alone, what it reads for others, and what it gets from them.

    Args:
        plan: This rank's part.
        make_pieces: Gives what is needed alone, and the blocks of each shared item.
        fetch: Reads pieces from S3.
        group: The process group; None for the default one.
        timeout_seconds: How long to wait for the slowest rank in each round.

    Raises:
        CheckpointError: Another rank failed.
        BaseException: What went wrong on this rank.
    """
    agreement = RankAgreement(plan.load_id, plan.rank, plan.world_size, timeout_seconds)
    errors = _FirstError()
    exchange: BlockExchange | None = None
    alone: Sequence[Piece] = ()
    shared: Mapping[Identity, Sequence[Piece]] = {}
    for turn in range(max(1, plan.turns)):
        shares = [share for share in plan.shares if share.turn == turn]
        held: dict[int, _HeldPiece] = {}
        with errors:
            if turn == 0:
                alone, shared = make_pieces()
                exchange = BlockExchange(group)
            for number, share in enumerate(shares):
                piece = _block(plan, shared, share)
                if share.owner == plan.rank:
                    held[number] = _HeldPiece(piece)
            fetch([*held.values(), *(alone if turn == 0 else ())])
        agreement.settle(turn, errors.error)
        assert exchange is not None
        # From here to the end of the round no error stops this rank: the others count on it.
        for number, share in enumerate(shares):
            if number in held:
                mine = held.pop(number)
                assert mine.data is not None
                exchange.send(mine.data, share.receivers, errors.guard(mine.release))
            else:
                piece = _block(plan, shared, share)
                data = _open(piece, errors)
                exchange.receive(data, share.owner, errors.guard(piece.finish))
        exchange.finish()
    if errors.error is not None:
        raise errors.error


class _FirstError:
    """Keeps the first error of this rank until the ranks next agree."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is not None and self.error is None:
            self.error = error
        return error is not None

    def guard(self, call: Callable[[], None]) -> Callable[[], None]:
        """Make a call whose error is kept, and which does nothing once there is one."""

        def guarded() -> None:
            if self.error is None:
                with self:
                    call()

        return guarded


def _open(piece: Piece, errors: _FirstError) -> memoryview:
    """The piece's memory, or memory to throw away where that cannot be had: the sender sends in any case."""
    if errors.error is None:
        with errors:
            return piece.open()
    return memoryview(bytearray(piece.want.end - piece.want.start))


def _block(plan: SharePlan, shared: Mapping[Identity, Sequence[Piece]], share: Share) -> Piece:
    try:
        return shared[plan.items[share.item]][share.block]
    except (KeyError, IndexError):
        raise CheckpointError(
            f"the load planner changed {plan.items[share.item][0]!r} after the ranks had agreed on who reads it; use "
            "replicated=False with this planner"
        ) from None
