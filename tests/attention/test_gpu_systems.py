"""Every system on a GPU: the numbers of the CPU, in one pass and with a cache, in float32 and bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.attention.battery import LENGTH, every_system
from tests.modeling.emitted import difference, remote, tokens

pytestmark = pytest.mark.gpu
DECODED = 12


@torch.no_grad()
def stepwise(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the last tokens: a prompt, then one token at a time."""
    step = model(input_ids=ids[:, :-DECODED], use_cache=True)
    found = [step.logits[:, -1:]]
    name = "cache" if "cache" in step else "past_key_values"
    for at in range(ids.shape[1] - DECODED, ids.shape[1]):
        step = model(input_ids=ids[:, at : at + 1], use_cache=True, **{name: step[name]})
        found.append(step.logits)
    return torch.cat(found, dim=1).float().cpu()


@torch.no_grad()
def whole(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return logits.float().cpu()


@every_system
@pytest.mark.parametrize("kind", ["llama", "gemma2", "glm"])
def test_the_numbers_of_the_cpu(name: str, kind: str, emitted: Callable[..., Path]) -> None:
    """Bfloat16 loses on a GPU what it loses on a CPU, not more; padding changes nothing."""
    torch.backends.cuda.matmul.allow_tf32 = False
    folder = emitted(name, kind)
    ids = tokens(2, LENGTH)
    exact, narrow = remote(folder), remote(folder).to(torch.bfloat16)
    wanted = whole(exact, ids)
    lost = difference(whole(narrow, ids), wanted)
    exact.cuda()
    narrow.cuda()
    assert difference(whole(exact, ids.cuda()), wanted) < 2e-4
    assert difference(stepwise(exact, ids.cuda()), wanted[:, -DECODED - 1 :]) < 2e-4
    assert difference(whole(narrow, ids.cuda()), wanted) < 3 * lost
    padded = torch.cat((torch.zeros(2, 5, dtype=ids.dtype), ids), dim=1).cuda()
    at = (torch.arange(LENGTH + 5) - 5).expand(2, -1).cuda()
    given = {"attention_mask": (at >= 0).long(), "position_ids": at.clamp(min=0)}
    with torch.no_grad():
        found = exact(input_ids=padded, **given, use_cache=False).logits[:, 5:].cpu()
    assert difference(found, wanted) < 2e-4
