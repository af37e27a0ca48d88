"""Map datasets one after the other, that still read a batch at the same time."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import ConcatDataset, Dataset, Subset
from typing_extensions import TypeVar

from s3torch_datasets._map_dataset import S3MapDataset, makes_own_samples, nothing_left, read_samples
from s3torch_datasets._object_source import ObjectSource

T_co = TypeVar("T_co", covariant=True, default=Any)


class S3ConcatDataset(ConcatDataset[T_co]):
    """Several map-style datasets as one.

    torch's `ConcatDataset` asks for one sample after the other, since it has no `__getitems__`
    (https://github.com/pytorch/pytorch/blob/v2.4.0/torch/utils/data/dataset.py#L300). This one fetches the objects of a
    batch at the same time, whichever `S3MapDataset` they are of, also through the `Subset`s that `random_split` makes,
    and through other concatenations.
    Datasets of other kinds may be among them; each is asked for its part of the batch at once where it can be.

    Args:
        datasets: Map-style datasets, in order.

    Example:
        >>> both = S3ConcatDataset([S3MapDataset.from_prefix("s3://bucket/2024/"), other])  # doctest: +SKIP
        >>> loader = torch.utils.data.DataLoader(both, batch_size=128, shuffle=True)  # doctest: +SKIP
    """

    def __init__(self, datasets: Iterable[Dataset[T_co]]) -> None:
        super().__init__(datasets)

    def __iter__(self) -> Iterator[T_co]:
        """Returns the samples one by one; without it, an IndexError of a transform would end a loop."""
        return (self[row] for row in range(len(self)))

    def __getitems__(self, indices: Sequence[int]) -> list[T_co]:
        """Returns the samples of a batch in order; objects that `on_error` skips are left out."""
        objects: dict[int, tuple[S3MapDataset[Any], ObjectSource]] = {}
        others: dict[int, tuple[Any, dict[int, int]]] = {}  # each dataset by its id; by place in the batch: the row
        for place, index in enumerate(indices):
            dataset, row = _find_sample(*_find_part(self, index))
            if isinstance(dataset, S3MapDataset) and not makes_own_samples(dataset):
                objects[place] = dataset, dataset.sources([row])[0]
            else:
                others.setdefault(id(dataset), (dataset, {}))[1][place] = row
        samples = read_samples(objects)
        for dataset, rows in others.values():
            samples.update(zip(rows, _ask(dataset, list(rows.values())), strict=False))  # some may skip
        if objects and not samples:
            raise nothing_left(objects)
        return [samples[place] for place in sorted(samples)]


def _find_part(whole: ConcatDataset[Any], index: int) -> tuple[Any, int]:
    """Returns the dataset that a row is of, and the row in it."""
    size = len(whole)
    row = index + size if index < 0 else index
    if not 0 <= row < size:
        raise IndexError(f"sample {index} of a dataset of {size}")
    number = bisect.bisect_right(whole.cumulative_sizes, row)
    return whole.datasets[number], row - (whole.cumulative_sizes[number - 1] if number else 0)


def _find_sample(dataset: Any, row: int) -> tuple[Any, int]:
    """Returns the dataset that a row of splits and of concatenations is of, and the row there."""
    while True:  # no subclass, which may do something else with its samples
        if type(dataset) is Subset:
            dataset, row = dataset.dataset, dataset.indices[row]
        elif type(dataset) in (S3ConcatDataset, ConcatDataset):
            dataset, row = _find_part(dataset, row)
        else:
            return dataset, row


def _ask(dataset: Any, rows: list[int]) -> list[Any]:
    ask = getattr(dataset, "__getitems__", None)
    return list(ask(rows)) if ask is not None else [dataset[row] for row in rows]
