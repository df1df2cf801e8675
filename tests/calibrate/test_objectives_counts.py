"""The number that a loss is divided by, over micro-batches and over two processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from ctxforge.calibrate.objectives.counts import counted_tokens, denominator
from ctxforge.calibrate.objectives.cross_entropy import IGNORE
from ctxforge.calibrate.objectives.loss_model import LossModel, next_tokens
from tests.verification.tiny import tiny, token_ids

ROOT = Path(__file__).parents[2]
# Two processes with different numbers of tokens; the second has two micro-batches.
WORKER = """
import sys
import torch
from torch.nn.parallel import DistributedDataParallel
from ctxforge.calibrate.objectives.counts import denominator
from ctxforge.calibrate.objectives.loss_model import LossModel
from tests.calibrate.test_objectives_counts import batches
from tests.verification.tiny import tiny

rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
model = tiny().requires_grad_(True)
parallel = DistributedDataParallel(LossModel(model, slice_rows=5))
mine = batches()[:1] if rank == 0 else batches()[1:]
whole = denominator([targets for _, targets in mine])
for number, (ids, targets) in enumerate(mine):
    parallel.require_backward_grad_sync = number == len(mine) - 1
    parallel(ids, targets, whole).loss.backward()
if rank == 0:
    torch.save({name: p.grad for name, p in model.named_parameters()}, f"{folder}/gradients")
torch.distributed.destroy_process_group()
"""


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    found = []
    for seed, ignored in ((1, 0), (2, 11), (3, 17)):
        ids = torch.tensor([token_ids(20, seed=seed)])
        targets = next_tokens(ids)
        targets[:, :ignored] = IGNORE
        found.append((ids, targets))
    return found


def test_one_process() -> None:
    targets = [targets for _, targets in batches()]
    assert [counted_tokens(part) for part in targets] == [19, 8, 2]
    assert denominator(targets) == 29.0
    assert denominator([torch.full((3,), IGNORE)]) == 1.0


def test_two_processes_give_one_processs_gradient(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER]
    running = [subprocess.Popen([*command, str(rank), str(tmp_path)], cwd=ROOT) for rank in (0, 1)]
    assert [process.wait(timeout=600) for process in running] == [0, 0]
    ours = torch.load(tmp_path / "gradients")
    model = tiny().requires_grad_(True)
    ids, targets = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    LossModel(model)(ids, targets, 29.0).loss.backward()
    for name, parameter in model.named_parameters():
        expected = parameter.grad
        assert expected is not None
        torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()), msg=name)
