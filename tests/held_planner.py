"""A planner that stands still in the midst of a save until a test lets it go on."""

from __future__ import annotations

import threading
from typing import Any

from torch.distributed.checkpoint.default_planner import DefaultSavePlanner


class HeldPlanner(DefaultSavePlanner):
    """Waits before it gives the first tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.is_held = threading.Event()
        self.may_go_on = threading.Event()

    def resolve_data(self, write_item: Any) -> Any:
        self.is_held.set()
        assert self.may_go_on.wait(60)
        return super().resolve_data(write_item)
