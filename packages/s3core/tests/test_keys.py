from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3core._keys import is_path

segments = st.text(alphabet=st.sampled_from("ab.%+ ü漢~#?"), min_size=1).filter(lambda s: s not in (".", ".."))


@given(st.lists(segments, min_size=1))
def test_obstore_says_keys_of_whole_segments(parts: list[str]) -> None:
    assert is_path("/".join(parts))


@given(st.lists(segments), st.sampled_from(["", ".", ".."]), st.lists(segments))
def test_obstore_cannot_say_a_key_with_an_empty_or_dotted_segment(
    before: list[str], segment: str, after: list[str]
) -> None:
    assert not is_path("/".join([*before, segment, *after]))


@given(st.text(), st.characters(categories=["Cc"], max_codepoint=0x7F), st.text())
def test_obstore_cannot_say_a_key_with_a_control_character(before: str, control: str, after: str) -> None:
    assert not is_path(before + control + after)


@pytest.mark.parametrize("key", ["/lead", "dir/", "a//b", "a/../b", "./a", "..", "a/.", "new\nline", "end\n", "\x7f"])
def test_these_keys_go_through_requests_of_our_own(key: str) -> None:
    assert not is_path(key)


@pytest.mark.parametrize("key", ["a", "a/b", "...", "a/...b/c", ".hidden/x", "sp ace+%41ü漢", "a/b.c/..d"])
def test_these_keys_go_through_obstore(key: str) -> None:
    assert is_path(key)
