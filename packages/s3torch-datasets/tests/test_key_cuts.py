"""Cutting a flat prefix: the cuts are keys to come, in order, and even where names are."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch_datasets._key_cuts import find_key_cuts

WANTED = 16


class Store:
    """Answers as S3 does, and counts."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys = sorted(keys)
        self.probes = 0
        self.rounds = 0

    def probe(self, points: list[str]) -> list[str | None]:
        self.rounds += 1
        self.probes += len(points)
        places = [bisect_right(self.keys, point) for point in points]
        return [self.keys[place] if place < len(self.keys) else None for place in places]


@given(
    keys=st.sets(st.text(st.characters(codec="utf-8"), max_size=6), min_size=1, max_size=60),
    share=st.floats(0, 1),
    prefix=st.text(st.characters(codec="utf-8"), max_size=2),
)
def test_cuts_are_keys_behind_the_known_ones_in_order(keys: set[str], share: float, prefix: str) -> None:
    store = Store([prefix + key for key in keys])
    known = store.keys[: 1 + int(share * (len(keys) - 1))]
    cuts = find_key_cuts(store.probe, prefix, known, WANTED)
    assert cuts == sorted(set(cuts))
    assert set(cuts) <= set(store.keys[len(known) :])


@pytest.mark.parametrize(
    "name",
    [
        lambda n: f"images/{n:08d}.jpg",
        lambda n: f"images/{n}.jpg",
        lambda n: f"images/{hashlib.md5(b'%d' % n).hexdigest()}",
        lambda n: f"images/n{n % 1000:04d}_{n}.JPEG",
        lambda n: f"images/train-{n:05d}-of-50000",
    ],
    ids=["padded", "plain", "hash", "classes", "shards"],
)
def test_usual_names_are_cut_into_parts_that_are_even_enough_with_few_questions(name: object) -> None:
    assert callable(name)
    store = Store([name(n) for n in range(50_000)])
    known = store.keys[:3000]
    cuts = find_key_cuts(store.probe, "images/", known, WANTED)
    bounds = [len(known), *(store.keys.index(cut) for cut in cuts), len(store.keys)]
    largest = max(end - start for start, end in pairwise(bounds))
    assert len(cuts) >= WANTED
    assert largest < len(store.keys) / 6
    assert store.rounds <= 4
    assert store.probes < 500


def test_the_end_of_a_listing_takes_one_round_of_questions() -> None:
    store = Store([f"p/{n:05d}" for n in range(3000)])
    assert find_key_cuts(store.probe, "p/", store.keys, WANTED) == []
    assert store.rounds == 1


def test_keys_that_are_each_the_beginning_of_the_next_are_left_in_one_part() -> None:
    store = Store(["p/" + "a" * n for n in range(1, 100)])
    assert find_key_cuts(store.probe, "p/", store.keys[:50], WANTED) == []
