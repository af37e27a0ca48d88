"""Range planning: every wanted byte once, nothing else beyond 5 %."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch_checkpoint._fetch_plan import Want, plan_fetches

wants_lists = st.lists(
    st.builds(
        lambda key, start, length: Want(key, start, start + length),
        st.sampled_from("abc"),
        st.integers(0, 300),
        st.integers(0, 120),
    ),
    max_size=30,
)
limits = st.fixed_dictionaries(
    {"max_gap_bytes": st.integers(0, 50), "alone_bytes": st.integers(0, 100), "max_joined_bytes": st.integers(1, 400)}
)


@given(wants_lists, limits)
def test_every_wanted_byte_lies_in_exactly_one_segment(wants: list[Want], limits: dict[str, int]) -> None:
    got: dict[int, set[int]] = {index: set() for index in range(len(wants))}
    seen: set[tuple[str, int]] = set()
    for fetch in plan_fetches(wants, **limits):
        for segment in fetch.segments:
            assert segment.wants
            for byte in range(segment.start, segment.end):
                assert (fetch.key, byte) not in seen
                seen.add((fetch.key, byte))
                for index in segment.wants:
                    assert wants[index].key == fetch.key
                    got[index].add(byte)
    for index, want in enumerate(wants):
        assert got[index] == set(range(want.start, want.end))


@given(wants_lists, limits)
def test_segments_are_in_order_and_fill_their_fetch_from_end_to_end(wants: list[Want], limits: dict[str, int]) -> None:
    for fetch in plan_fetches(wants, **limits):
        assert fetch.start == fetch.segments[0].start
        assert fetch.end == fetch.segments[-1].end
        for before, after in zip(fetch.segments, fetch.segments[1:], strict=False):
            assert before.end <= after.start <= before.end + limits["max_gap_bytes"]


@given(wants_lists, limits, st.integers(0, 2000))
def test_at_most_five_percent_more_than_needed_is_fetched(
    wants: list[Want], limits: dict[str, int], allowance: int
) -> None:
    needed = len({(want.key, byte) for want in wants for byte in range(want.start, want.end)})
    fetches = plan_fetches(wants, allowance_bytes=allowance, **limits)
    assert sum(fetch.end - fetch.start for fetch in fetches) <= 1.05 * max(needed, allowance)


@given(wants_lists, limits)
def test_a_fetch_of_several_segments_stays_within_its_bound(wants: list[Want], limits: dict[str, int]) -> None:
    for fetch in plan_fetches(wants, allowance_bytes=10**6, **limits):
        assert len(fetch.segments) == 1 or fetch.end - fetch.start <= limits["max_joined_bytes"]


@given(wants_lists, limits, st.randoms(use_true_random=False))
def test_the_order_of_the_wants_does_not_change_the_requests(
    wants: list[Want], limits: dict[str, int], random: object
) -> None:
    shuffled = list(wants)
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    def spans(of: list[Want]) -> list[tuple[str, int, int]]:
        return [(fetch.key, fetch.start, fetch.end) for fetch in plan_fetches(of, **limits)]

    assert spans(wants) == spans(shuffled)


def test_neighbours_are_joined_and_large_ranges_stay_alone() -> None:
    mib = 2**20
    wants = [Want("a", 0, 1000), Want("a", 1010, 2000), Want("a", 2000, 2000 + 8 * mib), Want("b", 0, 10)]
    spans = [(fetch.key, fetch.start, fetch.end) for fetch in plan_fetches(wants)]
    assert spans == [("a", 0, 2000), ("a", 2000, 2000 + 8 * mib), ("b", 0, 10)]


def test_the_smallest_gaps_are_closed_first() -> None:
    wants = [Want("a", 0, 100), Want("a", 108, 200), Want("a", 202, 300)]
    spans = [(fetch.start, fetch.end) for fetch in plan_fetches(wants)]
    assert spans == [(0, 300)]
    wants = [Want("a", 0, 100), Want("a", 118, 200), Want("a", 202, 300)]
    spans = [(fetch.start, fetch.end) for fetch in plan_fetches(wants)]
    assert spans == [(0, 100), (118, 300)]


def test_a_range_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0 <= start <= end"):
        plan_fetches([Want("a", 5, 4)])
