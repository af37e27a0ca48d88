"""Two ranks of Fabric save over a checkpoint while permission is lost: both are told, and the old one loads."""

from __future__ import annotations

import sys

import torch
from _end import end_rank
from _model_parallel import launch_two_ranks

(uri,) = sys.argv[1:]


def main() -> None:
    fabric = launch_two_ranks()
    model = fabric.setup_module(torch.nn.Linear(4, 4))
    # Six objects go through: the shards, the metadata and its copy, then the next shards; the next metadata does not.
    fabric.save(uri, {"model": model, "step": 1})
    error: BaseException | None = None
    for step in (2, 3):
        try:
            fabric.save(uri, {"model": model, "step": step})
        except BaseException as raised:  # torch's CheckpointException is no Exception
            error = raised
            break
    assert error is not None, "every save went through"
    assert "AccessDenied" in str(error) or "403" in str(error), error
    state = {"model": model, "step": 0}
    fabric.load(uri, state)
    assert state["step"] == 1, state["step"]
    end_rank(fabric.global_rank)


if __name__ == "__main__":
    main()
