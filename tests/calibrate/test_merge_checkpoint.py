"""The merged folder: right numbers in the right tensors, all else byte for byte, whatever the sharding, or nothing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ctxforge.calibrate.adapters import merge, named_recipe, read_adapter, rewriting, save_adapter
from ctxforge.calibrate.adapters.files import RECORD, WEIGHTS
from ctxforge.checkpoint import read_checkpoint, verify_integrity
from ctxforge.errors import CheckpointError, UnsupportedError, UsageError
from tests.calibrate.adapter_models import LORA, PLUS, adapted, load, logits, save_tiny, trained_model

HALVES = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 2.0**-23}


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def stored(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def reference(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """What every changed tensor should be, float64, worked out from the files alone."""
    numbers = load_file(adapter / WEIGHTS)
    weights = stored(base)
    found = {}
    for entry in json.loads((adapter / RECORD).read_text())["entries"]:
        for name in entry["tensors"]:
            parameter = entry["parameter"]
            if entry["kind"] == "whole":
                found[name] = numbers[parameter].double()
                continue
            delta = entry["scale"] * numbers[f"{parameter}.lora_B"].double() @ numbers[f"{parameter}.lora_A"].double()
            found[name] = weights[name].double() + (delta.T if entry["transposed"] else delta)
    return found


def ulps(got: torch.Tensor, exact: torch.Tensor) -> float:
    """Largest difference in units in the last place."""
    smallest = -14 if got.dtype == torch.float16 else -126
    exponent = (torch.frexp(got.double()).exponent - 1).clamp_min(smallest)
    unit = HALVES[got.dtype] * torch.exp2(exponent.double())
    return float(((got.double() - exact).abs() / unit).max())


def shard(folder: Path, out: Path, parts: int) -> Path:
    """The same checkpoint with its tensors dealt out to several files."""
    out.mkdir()
    tensors = stored(folder)
    mapping = {}
    for part in range(parts):
        file = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        mine = {name: tensors[name] for name in sorted(tensors)[part::parts]}
        save_file(mine, out / file, {"format": "pt"})
        mapping |= dict.fromkeys(mine, file)
    total = sum(one.numel() * one.element_size() for one in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": mapping}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    for path in folder.glob("*.json"):
        (out / path.name).write_bytes(path.read_bytes())
    return out


@pytest.mark.parametrize("dtype", list(HALVES), ids=["bf16", "f16", "f32"])
@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "qwen3", "gemma2"])
def test_changed_tensors_are_within_half_an_ulp_and_the_rest_is_untouched(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    base, adapter = adapted(kind, tmp_path, PLUS, dtype=dtype)
    before = digest(base)
    record = merge(base, adapter, tmp_path / "out")
    old, new = stored(base), stored(tmp_path / "out")
    exact = reference(base, adapter)
    assert {tensor.name for tensor in record.tensors} == set(exact)
    worst = 0.0
    for name in old:
        assert (new[name].dtype, new[name].shape) == (dtype, old[name].shape)
        if name not in exact:
            assert torch.equal(new[name], old[name])
            continue
        worst = max(worst, ulps(new[name], exact[name]))
    assert 0.4 < worst <= 0.5 + 1e-6
    assert 0.4 < record.largest_rounding <= 0.5 + 1e-6
    assert digest(base) == before
    unlike = {name for name, found in digest(tmp_path / "out").items() if found != before[name]}
    assert unlike == {"model.safetensors"}
    assert verify_integrity(tmp_path / "out") == []
    for tensor in record.tensors:
        data = new[tensor.name].contiguous().view(torch.uint8).numpy().tobytes()
        assert tensor.sha256 == hashlib.sha256(data).hexdigest()
        change = (exact[tensor.name] - old[tensor.name].double()).norm()
        assert tensor.norm_of_change == pytest.approx(float(change), rel=1e-4)
        assert tensor.norm_written == pytest.approx(
            float((new[tensor.name].double() - old[tensor.name].double()).norm()), rel=1e-3
        )
        assert tensor.changed == int((new[tensor.name] != old[tensor.name]).sum())


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "qwen2", "qwen3", "gemma2", "phi3", "mixtral", "gpt_oss"])
def test_the_merged_checkpoint_computes_what_base_and_adapter_do(kind: str, tmp_path: Path) -> None:
    base = save_tiny(kind, tmp_path / "base")
    plain = logits(load(base), 48)
    model, trained, _ = trained_model(base, PLUS, size=0.02)
    wanted = logits(model, 48)
    merge(base, save_adapter(tmp_path / "adapter", trained), tmp_path / "out")
    got = logits(load(tmp_path / "out"), 48)
    assert (wanted - plain).abs().max() > 0.1
    assert (got - wanted).abs().max() <= 1e-4


def test_the_result_does_not_depend_on_shards_or_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter = adapted("llama", tmp_path, PLUS, dtype=torch.bfloat16)
    whole = merge(base, adapter, tmp_path / "whole")
    sharded = merge(shard(base, tmp_path / "shards", 3), adapter, tmp_path / "sharded", link=True)
    monkeypatch.setattr(rewriting, "BLOCK", 100)
    merge(base, adapter, tmp_path / "blocks")
    found = stored(tmp_path / "whole")
    for other in ("sharded", "blocks"):
        assert all(torch.equal(found[name], one) for name, one in stored(tmp_path / other).items())
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) == 3
    assert [(one.name, one.sha256) for one in whole.tensors] == [(one.name, one.sha256) for one in sharded.tensors]
    assert verify_integrity(tmp_path / "sharded") == []


def test_a_tied_tensor_is_written_wherever_the_checkpoint_stores_it(tmp_path: Path) -> None:
    base = save_tiny("qwen2", tmp_path / "base")
    tensors = stored(base)
    assert "lm_head.weight" not in tensors
    twice = tmp_path / "twice"
    twice.mkdir()
    for path in base.glob("*.json"):
        (twice / path.name).write_bytes(path.read_bytes())
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, twice / "model.safetensors")
    for source in (base, twice):
        model, trained, _ = trained_model(source, PLUS)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        wanted = logits(model, 32)
        adapter = save_adapter(tmp_path / f"adapter-{source.name}", trained)
        merge(source, adapter, tmp_path / f"out-{source.name}")
        new = stored(tmp_path / f"out-{source.name}")
        assert not torch.equal(new["model.embed_tokens.weight"], tensors["model.embed_tokens.weight"])
        if source is twice:
            assert torch.equal(new["lm_head.weight"], new["model.embed_tokens.weight"])
        assert (logits(load(tmp_path / f"out-{source.name}"), 32) - wanted).abs().max() <= 1e-4


def test_finish_writes_the_provenance_and_the_record_is_json(tmp_path: Path) -> None:
    base, adapter = adapted("llama", tmp_path, LORA)
    record = merge(
        base, adapter, tmp_path / "out", finish=lambda done: {"ctxforge.json": json.dumps(done.document()).encode()}
    )
    written = json.loads((tmp_path / "out" / "ctxforge.json").read_text())
    assert written["base_digest"] == read_adapter(adapter).digest
    assert written["recipe"] == LORA.document()
    assert len(written["tensors"]) == len(record.tensors) == 12
    assert record.untouched == len(read_checkpoint(base).tensors) - 12
    assert 0.01 < record.relative_change < 1


def test_another_base_is_refused(tmp_path: Path) -> None:
    base, adapter = adapted("llama", tmp_path, LORA)
    other = save_tiny("llama", tmp_path / "other", seed=1)
    with pytest.raises(UsageError, match="not those that the adapter was trained on"):
        merge(other, adapter, tmp_path / "out")
    with pytest.raises(UsageError, match="has no tensor"):
        merge(save_tiny("gpt_neox", tmp_path / "neox"), adapter, tmp_path / "out", verify_base=False)
    # One bit in a tensor that the adapter doesn't touch.
    file = base / "model.safetensors"
    info = read_checkpoint(base).tensors["model.layers.0.mlp.up_proj.weight"]
    data = bytearray(file.read_bytes())
    data[info.start] ^= 1
    file.write_bytes(data)
    with pytest.raises(UsageError, match="not those that the adapter was trained on"):
        merge(base, adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge(base, adapter, tmp_path / "out", verify_base=False)


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    base, adapter = adapted("llama", tmp_path, LORA)
    with pytest.raises(UsageError, match="is the source itself"):
        merge(base, adapter, base)
    with pytest.raises(UsageError, match="not an adapter"):
        merge(base, base, tmp_path / "out")
    merge(base, adapter, tmp_path / "out")
    with pytest.raises(UsageError, match="not empty"):
        merge(base, adapter, tmp_path / "out")
    inside = tmp_path / "out" / "adapter"
    adapter.rename(inside)
    with pytest.raises(UsageError, match="lies inside the output"):
        merge(base, inside, tmp_path / "out", overwrite=True)
    inside.rename(adapter)
    merge(base, adapter, tmp_path / "out", overwrite=True)


def test_a_quantised_base_is_refused(tmp_path: Path) -> None:
    base, adapter = adapted("llama", tmp_path, LORA)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(UnsupportedError, match="quantised"):
        merge(base, adapter, tmp_path / "out")
    (base / "config.json").write_text(json.dumps(config))
    tensors = stored(base)
    name = "model.layers.1.self_attn.q_proj.weight"
    save_file({**tensors, name: tensors[name].to(torch.float8_e4m3fn)}, base / "model.safetensors")
    with pytest.raises(UnsupportedError, match="F8_E4M3"):
        merge(base, adapter, tmp_path / "out", verify_base=False)


def test_overflow_and_nan_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    base, adapter = adapted("llama", tmp_path, LORA, dtype=torch.float16)
    numbers = load_file(adapter / WEIGHTS)
    first = "model.layers.0.self_attn.q_proj.weight.lora_B"
    save_file({**numbers, first: numbers[first] * 1e6}, adapter / WEIGHTS)
    with pytest.raises(CheckpointError, match="overflows F16"):
        merge(base, adapter, tmp_path / "out")
    broken = numbers[first].clone()
    broken[0, 0] = float("nan")
    save_file({**numbers, first: broken}, adapter / WEIGHTS)
    with pytest.raises(CheckpointError, match="NaN"):
        merge(base, adapter, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_infinities_and_nans_of_the_base_stay(tmp_path: Path) -> None:
    base = save_tiny("llama", tmp_path / "base", dtype=torch.bfloat16)
    tensors = stored(base)
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name][0, :3] = torch.tensor([float("inf"), float("-inf"), float("nan")])
    tensors[name][1, :2] = torch.tensor([-0.0, 1e-40])
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    _, trained, _ = trained_model(base, LORA)
    with torch.no_grad():
        trained.low_rank[0].outer[1].zero_()
    record = merge(base, save_adapter(tmp_path / "adapter", trained), tmp_path / "out")
    new = stored(tmp_path / "out")[name]
    assert torch.equal(new[0, :3].view(torch.int16), tensors[name][0, :3].view(torch.int16))
    assert torch.equal(new[1].view(torch.int16), tensors[name][1].view(torch.int16))
    assert not torch.equal(new[2], tensors[name][2])
    assert all(np.isfinite(one.norm) for one in record.tensors)


def test_full_training_replaces_every_tensor_by_its_rounded_master(tmp_path: Path) -> None:
    base, adapter = adapted("qwen3", tmp_path, named_recipe("full"), dtype=torch.bfloat16)
    record = merge(base, adapter, tmp_path / "out")
    numbers, new = load_file(adapter / WEIGHTS), stored(tmp_path / "out")
    assert record.untouched == 0
    assert all(torch.equal(new[name], numbers[name].to(torch.bfloat16)) for name in new)
