"""LongCE, CREAM, chats and 16-bit checkpoints in whole runs."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ctxforge.calibrate.adapters import attach, read_adapter, restore_adapter
from ctxforge.calibrate.placement import Layout
from ctxforge.checkpoint import read_checkpoint
from tests.calibrate.recipe_models import (
    TARGET,
    TRAINED,
    Bench,
    alone,
    bench,
    counted,
    difference,
    gradient_norm,
    learned,
    logits,
    losses,
    mean_loss,
    stock,
    written_as_trained,
)

__all__ = ["bench"]

CONTEXT, REFRESH = 24, 8
LONG_CE = ("objective.kind=longce", f"objective.context={CONTEXT}", f"objective.refresh={REFRESH}")


def first_norm(run: Any) -> float:
    return float(next(event["gradient_norm"] for event in run.log if event["event"] == "step"))


def long_ce_weights(model: Any, row: Layout) -> torch.Tensor:
    """Weights of a document's tokens but the first: stretches of REFRESH tokens, each after CONTEXT tokens alone."""
    found = torch.ones(row.length)
    with torch.no_grad():
        full = losses(model, row)
        for first in range(CONTEXT, row.length, REFRESH):
            last = min(first + REFRESH, row.length)
            cut = torch.tensor(row.ids[first - CONTEXT : last])[None]
            table = model(input_ids=cut, use_cache=False).logits[0, CONTEXT - 1 : -1]
            short = torch.nn.functional.cross_entropy(table, cut[0, CONTEXT:], reduction="none")
            found[first:last] = (short - full[first - 1 : last - 1]).exp().clamp(max=5.0)
    return found[1:]


def test_longce_weighs_tokens_by_what_far_context_is_worth(bench: Bench) -> None:
    run = bench.calibrate(bench.extend("pi"), "full", ["adapter=full", "rows.count=2", *LONG_CE])
    learned(run)
    written_as_trained(run)
    before, parts = stock(run.extended), alone(run.first_rows)
    # The loss that is reported is that of all tokens alike; what moves weights is not.
    assert run.losses[0] == pytest.approx(mean_loss(before, parts), rel=1e-5)
    weights = [long_ce_weights(before, row) for row in parts]
    flat = torch.cat(weights)
    assert float((flat - 1).abs().max()) > 0.5
    assert float(flat.max()) <= 5
    wanted = gradient_norm(before, parts, weights)
    assert first_norm(run) == pytest.approx(wanted, rel=1e-3)
    assert abs(gradient_norm(before, parts) - wanted) > 0.01 * wanted


def test_longce_with_mixed_windows_weighs_on_the_targets_rotation(bench: Bench) -> None:
    """Texts on the source's rotation count as they are; the choice of one pass does not reach into the next."""
    run = bench.calibrate(bench.extend("longrope2"), "mixed", LONG_CE)
    learned(run)
    source, target, parts = stock(run.source), stock(run.extended), alone(run.first_rows)
    with torch.no_grad():
        each = [losses(target if row.extended[0] else source, row)[counted(row)].double() for row in parts]
    assert run.losses[0] == pytest.approx(float(torch.cat(each).mean()), rel=1e-5)


def test_cream(bench: Bench) -> None:
    run = bench.calibrate(bench.extend("pi"), "quick", ["rows.placement=cream"])
    learned(run)
    written_as_trained(run)
    long = [row for row in run.first_rows if len(row.runs()) == 3 and not row.isolated]
    assert long
    # CREAM's last chunk ends at the target's last position.
    assert {(row.length, row.reach) for row in long} == {(TRAINED, TARGET)}
    assert run.losses[0] == pytest.approx(mean_loss(stock(run.extended), run.first_rows), rel=1e-5)


TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


def test_chats_train_on_answers_or_on_more(bench: Bench) -> None:
    """Counted tokens by hand: an answer and the </s> behind it; a prompt of 1024 tokens and more; or everything."""
    answer, sizes = "abcdefghij" * 2, (1500, 400)
    with bench.documents.open("w") as file:
        for number in range(16):
            words = random.Random(number).choices("abcdefgh ", k=sizes[number % 2])
            chat = [{"role": "user", "content": "".join(words)}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": chat}) + "\n")
    source, extended = bench.extend("pi")
    settings = extended / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": TEMPLATE}))
    found = {}
    for policy in ("answers", "all", "long-prompts"):
        run = bench.calibrate(
            (source, extended),
            "full",
            ["rows.length=420", "rows.count=8", "rows.short_share=0.0", f"objective.train_on={policy}"],
            steps=1,
            out=policy,
            lengths={"target_length": 2048},
        )
        rows = run.first_rows
        found[policy] = sum(int(counted(row).sum()) for row in rows)
        step = next(event for event in run.log if event["event"] == "step")
        assert (step["counted"], step["tokens"]) == (found[policy], 8 * 420)
        assert run.losses[0] == pytest.approx(mean_loss(stock(extended), rows), rel=1e-5)
    assert found["all"] == 8 * 419
    assert 0 < found["answers"] <= 8 * (len(answer) + 1)
    assert found["answers"] < found["long-prompts"] < found["all"]


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_a_bfloat16_checkpoint(dtype: str, bench: Bench) -> None:
    """Trained in float32 it is rounded once at the end; trained in bfloat16, masters are read rounded all along."""
    checkpoints = bench.extend("yarn", dtype=torch.bfloat16)
    run = bench.calibrate(checkpoints, "full", ["adapter=full", "optimiser.learning_rate=0.003"], dtype=dtype)
    learned(run)
    load = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    model = stock(run.extended, load)
    trained = attach(model, read_checkpoint(run.extended), read_adapter(run.adapter).recipe)
    restore_adapter(run.adapter, trained)
    written = load_file(run.out / "model.safetensors")
    assert {one.dtype for one in written.values()} == {torch.bfloat16}
    for name, parameter in trained.tensors():
        assert torch.equal(written[name], parameter.detach().bfloat16()), name
    found = difference(logits(stock(run.out, load)).float(), logits(model).float())
    if dtype == "bfloat16":
        # Masters are what the file holds, so that both models are the same one.
        assert found == 0
        assert run.found.written.long_nll == pytest.approx(run.found.best.long_nll, rel=1e-7)
    else:
        # A weight is off by up to 2^-9 of itself; attention this sharp makes 0.063 of the largest logit of that.
        assert 1e-5 < found < 2**-3
        assert run.found.written.long_nll == pytest.approx(run.found.best.long_nll, abs=0.05)
    low = bench.calibrate(checkpoints, "quick", dtype=dtype, out="low")
    learned(low)
    assert low.found.written.long_nll == pytest.approx(low.found.best.long_nll, abs=0.05)
    assert low.found.merged.document()["largest_rounding_ulp"] <= 0.5 + 2.0**-20
