"""Two ranks of Fabric save over a checkpoint what rank 0 cannot pickle: both are told, and the old one loads."""

from __future__ import annotations

import sys

import pytest
import torch
from _end import end_rank
from _model_parallel import launch_two_ranks

uri, how = sys.argv[1:]


def main() -> None:
    fabric = launch_two_ranks(save_distributed_checkpoint=how == "sharded")
    model = fabric.setup_module(torch.nn.Linear(4, 4))
    fabric.save(uri, {"model": model, "step": 1})
    # Pickling errors of every kind have "pickle" in them, in one case or another.
    with pytest.raises(Exception, match=r"(?i)pickle"):
        fabric.save(uri, {"model": model, "step": lambda: 2})
    state = {"model": model, "step": 0}
    fabric.load(uri, state)
    assert state["step"] == 1, state["step"]
    end_rank(fabric.global_rank)


if __name__ == "__main__":
    main()
