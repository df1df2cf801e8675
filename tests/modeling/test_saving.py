"""Saving and loading again: the folder stays whole, and no copy falls back to the stock function."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from tests.modeling.emitted import ROTARY, SLOPES, Case, difference, read_config, remote, tokens, whole

Folders = Callable[[Any], Path]
CASES = (ROTARY[0], ROTARY[3], ROTARY[6], *SLOPES[::2])
every = pytest.mark.parametrize("case", CASES, ids=str)


@every
def test_a_saved_model_loads_again(case: Case, converted: Folders, tmp_path: Path) -> None:
    folder, ids = converted(case), tokens(2, 100)
    model = remote(folder)
    model.save_pretrained(tmp_path / "saved")
    before, after = read_config(folder), read_config(tmp_path / "saved")
    for key in ("model_type", "architectures", "auto_map", "attn_implementation", "ctxforge"):
        assert after[key] == before[key]
    assert (tmp_path / "saved" / "ctxforge_runtime.py").read_bytes() == (folder / "ctxforge_runtime.py").read_bytes()
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=False)
    assert difference(whole(remote(tmp_path / "saved"), ids), whole(model, ids)) == 0


@every
def test_a_config_saved_alone_keeps_the_type(case: Case, converted: Folders, tmp_path: Path) -> None:
    remote(converted(case)).config.save_pretrained(tmp_path)
    assert read_config(tmp_path)["model_type"] == "ctxforge_" + case.kind
    assert "attn_implementation" in read_config(tmp_path)


@every
def test_copies_and_pickles_compute_the_same(case: Case, converted: Folders) -> None:
    model, ids = remote(converted(case)), tokens(2, 100)
    wanted = whole(model, ids)
    twin = copy.deepcopy(model)
    assert difference(whole(twin, ids), wanted) == 0
    assert difference(whole(pickle.loads(pickle.dumps(model)), ids), wanted) == 0
    rotary = [module for name, module in twin.named_modules() if name.endswith("rotary_emb")]
    for module in twin.modules():
        if hasattr(module, "ctxforge_rotary"):
            assert module.ctxforge_rotary is rotary[0]  # of the copy, not of the original


def test_two_checkpoints_in_one_process_keep_their_own_parameters(converted: Folders) -> None:
    ids = tokens(1, 100)
    first, second = remote(converted(ROTARY[0])), remote(converted(ROTARY[1]))
    wanted = whole(first, ids), whole(second, ids)
    assert difference(whole(first, ids), wanted[0]) == 0
    assert difference(wanted[0], wanted[1]) > 1e-3
    assert difference(whole(remote(converted(ROTARY[0])), ids), wanted[0]) == 0


def test_a_model_cast_as_a_whole_keeps_its_table(converted: Folders) -> None:
    """model.to(bfloat16) casts the rotary buffer along; the runtime takes the table from the config again."""
    import torch

    folder, ids = converted(ROTARY[3]), tokens(1, 250)
    cast = remote(folder).to(torch.bfloat16)
    loaded = remote(folder, dtype=torch.bfloat16)
    assert difference(whole(cast, ids).float(), whole(loaded, ids).float()) == 0
