"""Every named recipe from an extended checkpoint to a finished one: what is trained, learned, written and loaded.

The first step of each is held to plain models: every document alone, at its own positions, under an explicit mask.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from ctxforge.attention.shifted_sparse import pattern
from ctxforge.calibrate.data import plan_batch
from ctxforge.calibrate.recipes import RECIPES
from tests.calibrate.recipe_models import (
    TARGET,
    TRAINED,
    Bench,
    Run,
    alone,
    bench,
    counted,
    difference,
    gradient_norm,
    learned,
    logits,
    long_nll,
    losses,
    mean_loss,
    stock,
    unmerged,
    written_as_trained,
)

__all__ = ["bench"]

METHODS = {
    "quick": "pi",
    "full": "yarn",
    "longlora": "pi",
    "pose": "ntk",
    "abf": "abf",
    "mixed": "longrope2",
    "drope": "drope",
    "xpos": "xpos-abf",
    "giraffe": "giraffe-truncated",
}


def test_every_recipe_is_here() -> None:
    assert set(METHODS) == set(RECIPES)


@pytest.mark.parametrize("recipe", ["quick", "full", "pose", "abf", "drope", "giraffe"])
def test_a_recipe_learns_and_is_written_as_it_was_trained(recipe: str, bench: Bench) -> None:
    run = bench.calibrate(bench.extend(METHODS[recipe]), recipe)
    learned(run)
    model = written_as_trained(run)
    before, rows = stock(run.extended), run.first_rows
    assert run.losses[0] == pytest.approx(mean_loss(before, rows), rel=1e-5)
    assert run.held_out[0]["long_nll"] == pytest.approx(long_nll(before, run), rel=1e-5)
    if run.found.plan.recipe.adapter.kind == "full":
        norm = next(event["gradient_norm"] for event in run.log if event["event"] == "step")
        assert norm == pytest.approx(gradient_norm(before, rows), rel=1e-4)
    {
        "quick": skips,
        "pose": skips,
        "full": whole_rows,
        "abf": short_first,
        "drope": no_positions,
        "giraffe": fractions,
    }[recipe](run, model)


def skips(run: Run, _model: Any) -> None:
    """PoSE: rows of the trained length whose positions go beyond it."""
    long = [row for row in run.first_rows if not row.isolated and row.reach > row.length]
    assert long
    assert all(row.length == TRAINED and row.reach <= TARGET for row in long)
    assert {row.length for row in run.first_rows if row not in long} <= set(range(TRAINED + 1))


def whole_rows(run: Run, _model: Any) -> None:
    assert TARGET in {row.length for row in run.first_rows}
    assert {len(row.runs()) for row in run.first_rows if row.length == TARGET} == {1}


def short_first(run: Run, _model: Any) -> None:
    """Two of four steps have rows of the trained length, as many more; the tokens of a step stay."""
    training = run.loop.training
    plans = [plan_batch(training.mixture, 0, step) for step in range(4)]
    assert [plan.length for plan in plans] == [TRAINED, TRAINED, TARGET, TARGET]
    assert [len(plan.rows) for plan in plans] == [16, 16, 4, 4]
    tokens = [event["tokens"] for event in run.log if event["event"] == "step"]
    assert tokens[0] <= 16 * TRAINED
    assert max(tokens[2:]) <= 4 * TARGET
    assert {row.kind for plan in plans for row in plan.rows} == {"long", "short"}


def no_positions(run: Run, model: Any) -> None:
    """Rows have the trained length, and the result does not know where a token stands."""
    assert {stage.length for stage in run.found.plan.stages} == {TRAINED}
    ids = torch.randint(3, 200, (1, 50))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    far = torch.arange(50)[None] * 5 + 3
    with torch.no_grad():
        assert difference(model(**given, position_ids=far).logits, model(**given).logits) < 1e-5
        rotated = stock(run.source)
        assert difference(rotated(**given, position_ids=far).logits, rotated(**given).logits) > 1e-2


def fractions(run: Run, _model: Any) -> None:
    long = [row for row in run.first_rows if row.length == TARGET]
    assert long
    assert all((row.positions % 1 != 0).any() and row.reach <= TARGET + 1 for row in long)


def test_longlora_trains_in_groups_and_is_measured_and_written_whole(bench: Bench) -> None:
    """On tied embeddings: they are trained, both ends of the model read them, and the file holds them once."""
    run = bench.calibrate(bench.extend("pi", "qwen2"), "longlora")
    learned(run)
    model = written_as_trained(run)
    before, rows = stock(run.extended), run.first_rows
    group = run.found.plan.group
    assert group == TARGET // 4
    grouped = []
    with torch.no_grad():
        for row in rows:
            documents = torch.tensor(row.documents)
            seen = pattern({"group": group}, row.length, 4).visible & (documents[:, None] == documents[None, :])
            grouped.append(losses(before, row, seen)[counted(row)].double())
    whole = mean_loss(before, rows)
    assert run.losses[0] == pytest.approx(float(torch.cat(grouped).mean()), rel=1e-5)
    assert abs(run.losses[0] - whole) > 1e-3
    assert run.held_out[0]["long_nll"] == pytest.approx(long_nll(before, run), rel=1e-5)
    from safetensors.torch import load_file

    written, old = load_file(run.out / "model.safetensors"), load_file(run.extended / "model.safetensors")
    assert written.keys() == old.keys()
    assert [name for name in written if "embed" in name or "lm_head" in name] == ["model.embed_tokens.weight"]
    assert difference(written["model.embed_tokens.weight"], old["model.embed_tokens.weight"]) > 1e-3
    assert model.lm_head.weight is model.model.embed_tokens.weight
    trained = unmerged(run)
    assert torch.equal(model.lm_head.weight, trained.lm_head.weight)
    assert {tensor.role for tensor in run.found.merged.tensors} == {"attention", "norm", "embedding"}


@pytest.mark.parametrize("method", ["longrope2", "giraffe-truncated", "abf"])
def test_mixed_windows_rotate_short_documents_as_the_source_does(method: str, bench: Bench) -> None:
    """One step's loss is that of two models: the source on documents of its length, the target on longer ones.

    giraffe-truncated keeps a = 1 by a factor in the query weights: there the source's scores need the factor back.
    """
    run = bench.calibrate(bench.extend(method), "mixed")
    source, target, parts = stock(run.source), stock(run.extended), alone(run.first_rows)
    short = [row for row in parts if row.length <= TRAINED]
    assert 0 < len(short) < len(parts)
    with torch.no_grad():
        each = [losses(source if row in short else target, row)[counted(row)].double() for row in parts]
    assert run.losses[0] == pytest.approx(float(torch.cat(each).mean()), rel=1e-5)
    assert abs(run.losses[0] - mean_loss(target, parts)) > 1e-3
    learned(run)
    written_as_trained(run)
    # Measurements see the target's rotation alone, before training as after.
    assert run.held_out[0]["long_nll"] == pytest.approx(long_nll(target, run), rel=1e-5)


@pytest.mark.parametrize("schedule", ["annealed", "giraffe"])
def test_xpos_lowers_its_scale_base_while_it_trains_and_rests_at_the_targets(schedule: str, bench: Bench) -> None:
    seen: list[tuple[bool, float]] = []

    def watch(loop: Any) -> None:
        decoder = loop.training.prepared.inner.model.get_decoder()
        system = next(one.ctxforge_system for one in decoder.modules() if hasattr(one, "ctxforge_system"))
        decoder.register_forward_pre_hook(lambda module, _given: seen.append((module.training, system.scale_base)))

    bench.watch = watch
    run = bench.calibrate(bench.extend("xpos-abf"), "xpos", [f"scale_base={schedule}"], trust_remote_code=True)
    learned(run)
    model = written_as_trained(run, trust=True)
    target = TARGET / 2
    assert {base for training, base in seen if not training} == {target}
    used = list(dict.fromkeys(base for training, base in seen if training))
    if schedule == "annealed":
        start = 64 * TARGET
        # 1 / B grows evenly over the first half of the steps.
        assert used == pytest.approx([start, 2 / (1 / start + 1 / target), target])
    else:
        assert used == [8192, 8184, 8176, 8168]
    assert json.loads((run.out / "config.json").read_text())["ctxforge"]["parameters"]["scale_base"] == target
    before = stock(run.extended, trust=True)
    system = next(one.ctxforge_system for one in before.modules() if hasattr(one, "ctxforge_system"))
    at_target = mean_loss(before, run.first_rows)
    system.scale_base, system.stretch = used[0], int(2 * used[0])
    assert run.losses[0] == pytest.approx(mean_loss(before, run.first_rows), rel=1e-5)
    assert abs(run.losses[0] - at_target) > 1e-3
    assert difference(logits(model), logits(stock(run.source))) > 1e-2
