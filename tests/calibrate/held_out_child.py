"""One of two processes that measure a sharded model together: see test_held_out_processes.py.

Arguments: a token cache, the rank, a file over which the processes find each other, and where to write what was found.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ctxforge.calibrate.data import TokenCache, whole
from ctxforge.calibrate.held_out import HeldOutSettings, held_out, measure, reference
from ctxforge.calibrate.objectives.loss_model import LossModel
from tests.verification.tiny import YARN, tiny


def add(values: list[float]) -> list[float]:
    """Sums over both processes."""
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    found: list[float] = total.tolist()
    return found


def main(cache: Path, rank: int, meeting: Path, out: Path) -> None:
    torch.set_num_threads(1)
    windows = held_out([whole(TokenCache.open(cache))], HeldOutSettings(64, 200, windows=3, short_windows=150))
    model = tiny(rope_parameters=YARN).requires_grad_(True).train()
    before = reference(tiny(), windows)
    alone = measure(LossModel(model), windows, before)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    shared = reference(tiny(), windows, rank=rank, world=2, add=add)
    mesh = init_device_mesh("cpu", (2,))
    loss_model = LossModel(model)
    for layer in model.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(loss_model, mesh=mesh)
    kinds = {type(parameter).__name__ for parameter in loss_model.parameters()}
    passes: list[int] = []
    loss_model.register_forward_hook(lambda *_: passes.append(1))
    found = measure(loss_model, windows, shared, rank=rank, world=2, add=add)
    # The model trains on: nothing of the measurement is left in it.
    ids = torch.tensor(windows.short[0].ids)[None]
    loss = loss_model(ids, ids.roll(-1), 1.0).loss
    loss.backward()
    out.write_text(
        json.dumps(
            {
                "alone": alone.document(),
                "shared": found.document(),
                "same_reference": shared == before,
                "kinds": sorted(kinds),
                "passes": len(passes) - 1,
                "trains": all(parameter.grad is not None for parameter in loss_model.parameters()),
            }
        )
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
