"""A tensor within a data object: `torch.save`'s archive, of which torch's own checksums are left out."""

from __future__ import annotations

import io
import zipfile

import pytest
import torch
from torch import serialization

from s3torch_checkpoint.dcp import _save_tensor
from s3torch_checkpoint.dcp._save_tensor import save_tensor

needs_the_option = pytest.mark.skipif(
    not _save_tensor._is_option_of_a_context(), reason="this torch has no such option for one save"
)


def archive(save: object, tensor: torch.Tensor) -> zipfile.ZipFile:
    file = io.BytesIO()
    save(tensor, file)  # type: ignore[operator]
    return zipfile.ZipFile(file)


@needs_the_option
def test_only_the_checksums_differ_from_what_torch_writes() -> None:
    tensor = torch.arange(100_000)
    ours, torchs = archive(save_tensor, tensor), archive(torch.save, tensor)
    layouts = [
        [(one.filename, one.header_offset, one.file_size) for one in found.infolist()] for found in (ours, torchs)
    ]
    assert layouts[0] == layouts[1]
    assert {one.CRC for one in ours.infolist()} == {0}
    assert ours.fp is not None
    ours.fp.seek(0)
    assert torch.equal(torch.load(ours.fp, weights_only=True), tensor)


@needs_the_option
def test_the_callers_own_saves_keep_their_checksums() -> None:
    save_tensor(torch.ones(3), io.BytesIO())
    assert serialization.get_crc32_options()
    assert archive(torch.save, torch.ones(3)).testzip() is None


def test_an_option_of_the_whole_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    computes = True

    def set_for_all(value: bool) -> None:
        nonlocal computes
        computes = value

    monkeypatch.setattr(serialization, "set_crc32_options", set_for_all, raising=False)
    monkeypatch.setattr(serialization, "get_crc32_options", lambda: computes, raising=False)
    assert not _save_tensor._is_option_of_a_context.__wrapped__()
    assert computes


def test_a_torch_without_the_option_saves_as_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_save_tensor, "_is_option_of_a_context", lambda: False)
    assert archive(save_tensor, torch.ones(3)).testzip() is None
