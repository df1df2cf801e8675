"""`compare` on the bundled model: swapped tables score as converted checkpoints do, and the model is left as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import ctxforge
from ctxforge.verification.load import load_model
from ctxforge.verification.settings import VerifySettings
from ctxforge.verification.swap import TableValues, swapped
from tests.conftest import Ran

SMALL = ("--to", "2x", "--needles", "4", "--seeds", "2", "--buckets", "4", "--lengths", "1024", "--device", "cpu")


def test_ranks_methods_as_their_checkpoints_score(cli: Callable[..., Ran], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = cli("compare", "bundled", "--methods", "pi,mrrope-pro,yarn", *SMALL, "--report", page, "--json")
    assert done.code == 0, done.err
    rows = {row["name"]: row for row in done.document["methods"]}
    assert set(rows) == {"unmodified", "pi", "mrrope-pro", "yarn"}
    scores = [row["score"]["value"] for row in done.document["methods"]]
    assert scores == sorted(scores)
    assert rows["yarn"]["score"]["value"] < rows["pi"]["score"]["value"]
    assert rows["pi"]["difference"]["low"] > 0
    assert "mrrope-pro" in page.read_text()
    # The same numbers from a converted folder; MrRoPE's temperature is folded into bf16 weights there.
    for name, tolerance in (("yarn", 1e-6), ("mrrope-pro", 5e-3)):
        out = ctxforge.extend("bundled", method=name, to="2x", out=tmp_path / name).out
        settings = VerifySettings(lengths=(1024,), needles=4, seeds=2, buckets=4, device="cpu", source_curve=False)
        text = (Path(ctxforge.__file__).parent / "bundled" / "text.txt").read_text()
        found = ctxforge.verify(out, text=text, settings=settings).result
        swapped_nll = rows[name]["measures"]["lengths"][-1]["nll"]
        assert swapped_nll == pytest.approx(found.lengths[-1].nll, rel=tolerance)


def test_what_no_static_table_expresses_is_refused(cli: Callable[..., Ran]) -> None:
    for method in ("dynamic-ntk", "xpos"):
        ran = cli("compare", "bundled", "--methods", f"yarn,{method}", *SMALL)
        assert ran.code == 3
        assert "not one static rotary table" in ran.err
    assert cli("compare", "bundled", "--methods", "yarn,yarn", *SMALL).code == 2


def test_tables_come_back_bit_for_bit() -> None:
    from ctxforge.sources import bundled_model

    model = load_model(bundled_model(), VerifySettings(device="cpu"), "cpu")
    rotary = model.model.rotary_emb
    before, scaling = rotary.inv_freq.clone(), rotary.attention_scaling
    values = TableValues(None, [0.5 / (i + 1) for i in range(before.numel())], 1.3)
    with swapped(model, [values]):
        assert not torch.equal(rotary.inv_freq, before)
        assert rotary.attention_scaling == 1.3
    assert torch.equal(rotary.inv_freq, before)
    assert rotary.attention_scaling == scaling
    with pytest.raises(ctxforge.errors.UnsupportedError), swapped(model, [TableValues(None, [0.1], 1.0)]):
        pass
