"""Recipes on other architectures and on checkpoints with code of their own: they work, or say why they don't."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ctxforge.calibrate.memory.grouped import GroupedProducts
from ctxforge.errors import CtxforgeError
from tests.calibrate.recipe_models import (
    TARGET,
    TRAINED,
    Bench,
    alone,
    bench,
    difference,
    learned,
    logits,
    mean_loss,
    stock,
    unmerged,
    written_as_trained,
)

__all__ = ["bench"]

# Kind, and whether a plain model under one causal mask is the same: it is not where layers have windows.
KINDS = {
    "qwen3": True,
    "gpt_neox": True,
    "glm": True,
    "gemma2": False,
    "mistral": False,
    "mixtral": True,
    "phi3": True,
}


@pytest.mark.parametrize("kind", KINDS)
def test_quick_on(kind: str, bench: Bench) -> None:
    run = bench.calibrate(bench.extend("pi", kind), "quick", steps=3)
    learned(run, 0.1)
    written_as_trained(run)
    before = mean_loss(stock(run.extended), run.first_rows)
    if KINDS[kind]:
        assert run.losses[0] == pytest.approx(before, rel=1e-5)
    roles = {tensor.role for tensor in run.found.merged.tensors}
    # Experts' weights are stacked in memory: attention and norms alone are trained there.
    assert roles == ({"attention", "norm"} if kind == "mixtral" else {"attention", "mlp", "norm"})


def test_grouped_products_without_values_have_the_sizes_of_those_with() -> None:
    """Forward, and both gradients: states by stacked weights, and states by states over the groups' ends."""
    found = []
    for device in ("cpu", "meta"):
        states = torch.randn(24, 32).to(device).requires_grad_(True)
        weights = torch.randn(3, 32, 48).to(device).requires_grad_(True)
        ends = torch.tensor([8, 8, 24], dtype=torch.int32).to(device)
        with GroupedProducts():
            product = torch.nn.functional.grouped_mm(states, weights, offs=ends)
            product.square().sum().backward()
        assert states.grad is not None
        assert weights.grad is not None
        found.append([(tuple(one.shape), one.dtype) for one in (product, states.grad, weights.grad)])
    assert found[0] == found[1]
    assert found[0][0] == ((24, 48), torch.float32)


@pytest.mark.parametrize("kind", ["gemma2", "mistral"])
def test_windows_count_positions_where_a_row_skips(kind: str, bench: Bench) -> None:
    """A windowed layer sees, across a skip, no more than it would at use; a mask that counts tokens is another loss."""
    changes = ["rows.short_share=0.0"]
    run = bench.calibrate(bench.extend("pi", kind), "quick", changes, steps=1)
    model, window = stock(run.extended), 24
    rows = [row for row in run.first_rows if not row.isolated]
    assert any(len(row.runs()) == 2 and row.reach > row.length + window for row in rows)
    by_position, by_token = [], []
    for row in rows:
        at, order = torch.tensor(row.positions), torch.arange(row.length)
        causal = order[:, None] >= order[None, :]
        for found, where in ((by_position, at), (by_token, order)):
            near = causal & (where[:, None] - where[None, :] < window)
            full, cut = (torch.where(one, 0.0, torch.finfo(torch.float32).min)[None, None] for one in (causal, near))
            mask = {"full_attention": full, "sliding_attention": cut} if kind == "gemma2" else cut
            ids = torch.tensor(row.ids)[None]
            with torch.no_grad():
                table = model(input_ids=ids, position_ids=at[None], attention_mask=mask, use_cache=False).logits[0]
            each = torch.nn.functional.cross_entropy(table[:-1], ids[0, 1:], reduction="none")
            found.append(each[torch.tensor(row.weights[1:] > 0)].double())
    assert run.losses[0] == pytest.approx(float(torch.cat(by_position).mean()), rel=1e-5)
    assert abs(run.losses[0] - float(torch.cat(by_token).mean())) > 1e-4


@pytest.mark.parametrize(
    ("kind", "method", "recipe", "changes", "says"),
    [
        ("mixtral", "pi", "quick", ["adapter.low_rank=mlp"], "mixture of experts"),
        ("mistral", "pi", "longlora", [], "do not attend in full"),
        ("gemma2", "pi", "longlora", [], "do not attend in full"),
        ("llama", "xpos", "longlora", [], "attention code of its own"),
        ("llama", "xpos", "giraffe", [], "take whole positions"),
        ("llama", "yarn", "xpos", [], "no scale base to change"),
        ("llama", "dynamic-ntk", "full", [], "dynamic NTK"),
        ("llama", "dynamic-ntk", "mixed", [], "depends on the length"),
        ("llama", "yarn", "quick", ["optimiser.kind=adamw-8bit"], "8"),
    ],
)
def test_a_recipe_that_does_not_fit_says_why(
    kind: str, method: str, recipe: str, changes: list[str], says: str, bench: Bench
) -> None:
    checkpoints = bench.extend(method, kind)
    with pytest.raises(CtxforgeError) as error:
        bench.calibrate(checkpoints, recipe, changes, trust_remote_code=method == "xpos")
    assert says in f"{error.value} {error.value.remedy}"
    assert not (bench.folder / "out").exists()


def test_mixed_windows_need_to_know_the_source(bench: Bench) -> None:
    """A checkpoint without a record has one rotation only; one extended twice has no source of its own."""
    source, _ = bench.extend("pi")
    with pytest.raises(CtxforgeError, match="the source's own rotation"):
        bench.calibrate((source, twice(bench)), "mixed", out="again")


def twice(bench: Bench) -> Path:
    import ctxforge

    return ctxforge.extend(bench.folder / "extended", method="yarn", to=2 * TARGET, out=bench.folder / "twice").out


_PROGRAM = """
import json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ctxforge":
            raise ImportError("ctxforge is not installed here")
sys.meta_path.insert(0, Refuse())
import torch
from transformers import AutoModelForCausalLM
ids = torch.tensor(json.loads(sys.argv[2]))
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, dtype=torch.float32).eval()
with torch.no_grad():
    print(json.dumps(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.tolist()))
"""


@pytest.mark.parametrize(
    "attached", ["self-extend:window=24,group=8", "dual-chunk:chunk=40,local=8", "lm-infinite:window=48,sinks=4"]
)
def test_an_attached_system_is_trained_as_it_attends(attached: str, bench: Bench) -> None:
    """With trust_remote_code; without it the checkpoint does not load. The result needs no ctxforge."""
    checkpoints = bench.extend("none", attach=attached)
    if attached.startswith("self-extend"):
        with pytest.raises(CtxforgeError, match="code of its own, which was not run"):
            bench.calibrate(checkpoints, "full", out="refused")
    run = bench.calibrate(checkpoints, "full", trust_remote_code=True)
    learned(run)
    written_as_trained(run, trust=True)
    before, rows = stock(run.extended, trust=True), run.first_rows
    assert TARGET in {row.length for row in rows}
    assert len(alone(rows)) > len(rows)
    assert run.losses[0] == pytest.approx(mean_loss(before, rows), rel=1e-4)
    assert abs(run.losses[0] - mean_loss(stock(run.source), rows)) > 1e-3
    if attached.startswith("dual-chunk"):
        ids = [[3 + at % 26 for at in range(3 * TRAINED)]]
        environment = {**os.environ, "HF_HOME": str(bench.folder / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        ran = subprocess.run(
            [sys.executable, "-I", "-c", _PROGRAM, str(run.out), json.dumps(ids)],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr[-2000:]
        given = torch.tensor(ids)
        with torch.no_grad():
            wanted = unmerged(run, trust=True)(input_ids=given, attention_mask=torch.ones_like(given)).logits
        assert difference(torch.tensor(json.loads(ran.stdout.splitlines()[-1])), wanted) < 1e-5
    assert logits(stock(run.out, trust=True)).isfinite().all()
