"""Several processes on one measurement, started by `accelerate launch`: each has the model and takes some units."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Processes:
    """The processes of this run.

    Attributes:
        rank: number of this one; 0 speaks and writes.
        count: of all.
        local_rank: number of this one on its machine, which is the number of its GPU.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    def everywhere(self, value: Any) -> Any:
        """The first process's value, in every process."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def together(self, values: dict[str, Any]) -> dict[str, Any]:
        """The entries of every process's dictionary, in every process."""
        if self.count == 1:
            return values
        from accelerate.utils import gather_object

        merged: dict[str, Any] = {}
        for part in gather_object([values]):
            merged.update(part)
        return merged


def launched() -> int:
    """How many processes a launcher started, by the environment that it set; 1 without one."""
    try:
        return max(1, int(os.environ.get("WORLD_SIZE", "1")))
    except ValueError:
        return 1


def is_first() -> bool:
    """Whether this process speaks and writes for all."""
    return launched() == 1 or os.environ.get("RANK", "0") == "0"


def find_processes(device: str) -> Processes:
    """Join the processes that a launcher started; alone without one.

    Args:
        device: as in `VerifySettings`: with "cpu" the processes talk through gloo.
    """
    if launched() == 1:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu")
    return Processes(state.process_index, state.num_processes, state.local_process_index)
