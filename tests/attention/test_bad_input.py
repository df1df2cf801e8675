"""Attachments asked for wrongly: a line of cause, one of remedy, the exit code, and nothing written or changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.models.auto.configuration_auto import model_type_to_module_name

from ctxforge.attention import attachments
from ctxforge.attention.attach import OUTSIDE_THE_INTERFACE
from ctxforge.rope.architectures import ARCHITECTURES
from ctxforge.rope.custom_code import SERVED
from tests.conftest import Ran
from tests.llama_folder import write_folder

ROOT = Path(__file__).parents[2]
# The systems whose checkpoints carry code.
CODED = tuple(name for name, found in attachments().items() if found.exported and found.system)
TO = ("--to", "4x")
# As far as all of them reach from 4096 tokens without a parameter.
NEAR = ("--to", "5000")
every = pytest.mark.parametrize("name", CODED)
Cli = Callable[..., Ran]

# attachment, words of the cause, words of the remedy
VALUES: list[tuple[str, str, str]] = [
    ("", "names no attachment", "--attach NAME"),
    (":", "names no attachment", "--attach NAME"),
    ("lm-infinte", "no attachment 'lm-infinte'", "did you mean lm-infinite?"),
    ("quux", "no attachment 'quux'", "self-extend"),
    ("lm-infinite+self-extend", "more than one attachment", "give one"),
    ("lm-infinite:window=3,sinks=4", "a window of 3 tokens is not larger than 4 sinks", "window=5 or more, or sinks=2"),
    ("lm-infinite:window=4,sinks=4", "not larger than 4 sinks", "window=5 or more, or sinks=3"),
    ("streaming-llm:window=4,sinks=4", "not larger than 4 sinks", "window=5 or more"),
    ("lm-infinite:window=-1,sinks=0", "a window of -1 tokens", "window=1 or more"),
    ("lm-infinite:sinks=5000", "sinks=5000 leave of 4096 tokens", "2047 sinks or fewer"),
    ("streaming-llm:sinks=-1", "sinks=-1 is negative", "0 or more"),
    ("lm-infinite:window=8k", "exceed the 4096 tokens", "window=4086 or less"),
    ("lm-infinite:evict=maybe", "evict=maybe is not true or false", "drops"),
    ("self-extend:group=8,window=100", "100 is no multiple of the group of 8", "window=96"),
    ("self-extend:group=0", "group of 0 is less than one", "leave group out"),
    ("self-extend:window=0", "window of 0 tokens is not 1 to 4095", "leave window out"),
    ("self-extend:window=4096", "window of 4096 tokens is not 1 to 4095", "leave window out"),
    ("self-extend:group=2,window=1000", "reaches 7192 tokens, fewer than 16384", "a group of 5 or more"),
    ("self-extend:window=3", "reaches 12282 tokens", "give another window"),
    ("self-extend:group=4000", "above a quarter of the trained length of 4096", "give a window too"),
    ("self-extend:group=5000", "above a quarter of the trained length of 4096", "give 1 to 1024"),
    ("rerope:window=0", "window of 0 tokens is not 1 to 4095", "leave window out for 2048"),
    ("leaky-rerope:factor=0.5", "0.5 is not a number from 1 on", "leave factor out"),
    ("leaky-rerope:factor=nan", "nan is not a number from 1 on", "leave factor out"),
    ("leaky-rerope:factor=two", "factor=two is not a number", "divided"),
    ("leaky-rerope:window=3000,factor=2", "reaches 5191 tokens", "factor=13"),
    ("leaky-rerope:window=4095", "reaches 4096 tokens", "a smaller window"),
    ("dual-chunk:chunk=4096", "chunk=4096 means distances up to 4096", "leave chunk out for 3072"),
    ("dual-chunk:chunk=100,local=100", "is not 1 to 99 tokens", "leave local out"),
    ("string", "reaches 5333 tokens, fewer than 16384", "--method yarn"),
    ("string:shift=4096", "shift of 4096 tokens is not 1 to 4095", "leave shift out"),
    ("string:shift=10,window=11", "window of 11 beside a shift of 10 is not 1 to 10", "leave window out"),
    ("blockwise-causal:block=0", "block=0 is less than one token", "give 1 to 2048"),
    ("blockwise-causal:block=2049", "distances reach 2 x 2049 - 1", "give 1 to 2048"),
    ("longnet:segments=2k/4k,dilations=1", "2 segments (2048/4096) and 1 dilations", "one dilation for each"),
    ("longnet:segments=2k/4k,dilations=2/4", "do not start with 1", "such as 1/2/4"),
    ("longnet:segments=4k/2k,dilations=1/2", "do not grow", "segments that grow"),
    ("longnet:segments=2/4,dilations=1/5", "longer than its segment", "far below"),
    ("transformer-xl:memory=0", "memory of 0 tokens is not 1 to 4095", "leave memory out"),
    ("transformer-xl", "llama has no config keys for transformer-xl", "--attach lm-infinite:window=2049,sinks=0"),
    ("s2-attn", "s2-attn is for training", "shifted_sparse_attention(model, group)"),
]
# What a source's config.json says besides, and words of cause and remedy.
SOURCES: dict[str, tuple[dict[str, Any], str, str]] = {
    "Falcon with RoPE": (
        {"model_type": "falcon", "alibi": False, "architectures": ["FalconForCausalLM"]},
        "does not serve falcon: its attention is outside transformers' attention interface",
        "--method yarn",
    ),
    "MLA": (
        {
            "model_type": "deepseek_v3",
            "architectures": ["DeepseekV3ForCausalLM"],
            **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
        },
        "does not serve deepseek_v3: its keys are compressed (MLA)",
        "--method yarn",
    ),
    "a Mamba hybrid with RoPE": (
        {"model_type": "falcon_h1", "architectures": ["FalconH1ForCausalLM"]},
        "does not serve falcon_h1",
        "docs/attention.md",
    ),
    "a multimodal wrapper": (
        {
            "model_type": "gemma3",
            "architectures": ["Gemma3ForConditionalGeneration"],
            "text_config": {
                "model_type": "gemma3_text",
                "hidden_size": 16,
                "num_attention_heads": 2,
                "head_dim": 8,
                "num_hidden_layers": 1,
                "max_position_embeddings": 4096,
            },
        },
        "gemma3 holds one in text_config",
        "the language model's own checkpoint",
    ),
    "two rotary tables": (
        {
            "model_type": "gemma3_text",
            "architectures": ["Gemma3ForCausalLM"],
            "num_hidden_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 512,
        },
        "serves one rotary table, gemma3_text has 2",
        "--method yarn",
    ),
    "no language model's head": (
        {"architectures": ["LlamaForSequenceClassification"]},
        "holds a LlamaForSequenceClassification",
        "the language model's own checkpoint",
    ),
    "code of its own": (
        {"auto_map": {"AutoModelForCausalLM": "modeling_mine.LlamaForCausalLM"}},
        "modeling code of its own (modeling_mine.LlamaForCausalLM)",
        "remove auto_map",
    ),
    "a scaling that stretches": (
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        "that of the model stretches with the length",
        "--method yarn --original-length N",
    ),
}
# Models that are refused before any attachment is looked at.
UNROTATED: dict[str, tuple[dict[str, Any], str]] = {
    "gpt2": (
        {"n_positions": 1024, "n_embd": 16, "n_layer": 1, "n_head": 2, "max_position_embeddings": None},
        "attachments work on RoPE, and gpt2 has none",
    ),
    "bloom": ({"n_layer": 1, "n_head": 2, "seq_length": 2048}, "attachments work on RoPE, and bloom has none"),
    "mpt": (
        {"d_model": 16, "n_layers": 1, "n_heads": 2, "max_seq_len": 2048},
        "attachments work on RoPE, and mpt has none",
    ),
    "falcon": ({"alibi": True}, "attachments work on RoPE, and falcon has none"),
    "bert": ({}, "an encoder"),
    "bart": ({}, "encoder-decoder"),
    "t5": ({}, "not supported"),
    "mamba": ({}, "state-space"),
    "jamba": ({}, "no positions"),
}


def state(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def refused(cli: Cli, source: Path, arguments: tuple[str, ...], cause: str, remedy: str, code: int) -> None:
    """`extend` and `plan` say so; a traceback, a file or a change of the source would show."""
    before, out = state(source), source.parent / "out"
    for command in (("extend", source, *arguments, "--out", out), ("plan", source, *arguments)):
        ran = cli(*command)
        lines = ran.err.strip().splitlines()
        assert ran.code == code, ran.err
        assert len(lines) == 2, ran.err
        assert lines[0].startswith("Error: ")
        assert cause in lines[0], ran.err
        assert lines[1].startswith("Hint: ")
        assert remedy in lines[1], ran.err
        assert ran.out == ""
    assert state(source) == before
    left = {path.name for path in source.parent.iterdir() if path.suffix != ".lock"}
    assert left == {source.name}


def converts(cli: Cli, source: Path, *arguments: str) -> None:
    """What a remedy names works."""
    ran = cli("plan", source, *arguments)
    assert ran.code == 0, ran.err


@pytest.mark.parametrize(("attachment", "cause", "remedy"), VALUES, ids=[case[0] for case in VALUES])
def test_names_and_values(cli: Cli, tmp_path: Path, attachment: str, cause: str, remedy: str) -> None:
    refusal = 3 if attachment in ("transformer-xl", "s2-attn") else 2
    source = write_folder(tmp_path / "source")
    refused(cli, source, ("--attach", attachment, *TO), cause, remedy, refusal)


@pytest.mark.parametrize("name", [*CODED, "transformer-xl"])
def test_parameters_of_every_system(cli: Cli, tmp_path: Path, name: str) -> None:
    source, first = write_folder(tmp_path / "source"), attachments()[name].parameters[0].name
    for written, cause, remedy in (
        (f"{first}x=5", f"{name} has no parameter '{first}x'", f"did you mean {first}?"),
        (f"{first}=many", f"{first}=many is not a", ""),
        (f"{first}=1.5x", "is not a", ""),
        (f"{first}=5,{first}=6", f"'{first}' is given twice", "keep one"),
        (first, f"'{first}' is not a parameter", "key=value"),
        (f"{first}=", "is not a parameter", "key=value"),
        ("=5", "'=5' is not a parameter", "key=value"),
    ):
        refused(cli, source, ("--attach", f"{name}:{written}", *TO), cause, remedy, 2)


@every
@pytest.mark.parametrize("case", SOURCES)
def test_sources_that_no_system_serves(cli: Cli, tmp_path: Path, name: str, case: str) -> None:
    changes, cause, remedy = SOURCES[case]
    source = write_folder(tmp_path / "source", **changes)
    refused(cli, source, ("--attach", name, *NEAR), cause, remedy, 3)


@pytest.mark.parametrize("model_type", UNROTATED)
def test_models_without_rope(cli: Cli, tmp_path: Path, model_type: str) -> None:
    changes, cause = UNROTATED[model_type]
    source = write_folder(tmp_path / "source", **{"model_type": model_type, "architectures": None, **changes})
    refused(cli, source, ("--attach", "lm-infinite", "--to", "16k"), cause, "", 3)


@every
def test_methods_that_do_not_go_with_it(cli: Cli, tmp_path: Path, name: str) -> None:
    source, chosen = write_folder(tmp_path / "source"), ("--attach", name, *NEAR)
    for method in ("xpos", "dynamic-yarn", "dynamic-ntk-exact"):
        words = f"{name} and {method} both bring attention code"
        refused(cli, source, ("--method", method, *chosen), words, "a static method", 3)
    words = f"{name} rotates with one table, and that of dynamic-ntk stretches"
    refused(cli, source, ("--method", "dynamic-ntk", *chosen), words, "a static method", 3)
    converts(cli, source, "--method", "yarn", *chosen)


@every
def test_targets_below_the_trained_length(cli: Cli, tmp_path: Path, name: str) -> None:
    source, chosen = write_folder(tmp_path / "source"), ("--attach", name)
    for length in ("4095", "0.5x"):
        refused(cli, source, (*chosen, "--to", length), "is below the 4096", f"ctxforge attachments {name}", 2)
    converts(cli, source, *chosen, "--to", "4096")
    converts(cli, source, *chosen)


@every
def test_sources_with_code_of_ours(cli: Cli, tmp_path: Path, name: str) -> None:
    """Converting one once more would lose what it has."""
    plain = write_folder(tmp_path / "plain" / "source")
    attached, rotated = tmp_path / "attached" / "source", tmp_path / "rotated" / "source"
    chosen = ("--attach", name)
    for folder, arguments in ((attached, (*chosen, *NEAR)), (rotated, ("--method", "xpos", *TO))):
        folder.parent.mkdir()
        assert cli("extend", plain, *arguments, "--out", folder).code == 0
    for arguments in ((*chosen, "--to", "32k"), ("--attach", "lm-infinite"), ("--method", "yarn", "--to", "32k")):
        refused(cli, attached, arguments, name, "the checkpoint it was made from", 3)
    refused(cli, rotated, (*chosen, "--to", "32k"), "by modeling code already (xpos)", "that it was made from", 3)


def test_two_attachments(cli: Cli, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source")
    refused(cli, source, ("--attach", "lm-infinite", "--attach", "string", *TO), "given 2 times", "keep one", 2)
    assert cli("extend", source, *TO, "--out", tmp_path / "out", "--attach").code == 2
    assert not (tmp_path / "out").exists()


def test_what_remedies_name_works(cli: Cli, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source")
    for attachment in (
        "lm-infinite:window=5,sinks=4",
        "lm-infinite:window=2049,sinks=0",
        "lm-infinite:sinks=2047",
        "self-extend:group=8,window=96",
        "self-extend:group=4000,window=4000",
        "leaky-rerope:window=3000,factor=13",
    ):
        converts(cli, source, "--attach", attachment, *TO)
    stretching = write_folder(tmp_path / "stretching", rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    converts(cli, stretching, "--attach", "lm-infinite", "-m", "yarn", "--original-length", "4096", "--to", "16k")
    tokenizer_alone = write_folder(tmp_path / "tokenizer", auto_map={"AutoTokenizer": ["tokenization_mine.Mine", None]})
    converts(cli, tokenizer_alone, "--attach", "lm-infinite", *TO)
    mistral = write_folder(tmp_path / "mistral", model_type="mistral", architectures=["MistralForCausalLM"])
    converts(cli, mistral, "--attach", "transformer-xl", *TO)


def test_which_types_are_outside_the_interface() -> None:
    """Of the types with RoPE that are not served, by transformers' own source."""
    models, outside = Path(transformers.__file__).parent / "models", set()
    for model_type in set(ARCHITECTURES) - set(SERVED):
        if ARCHITECTURES[model_type].config_path:
            continue
        files = list((models / model_type_to_module_name(model_type)).glob("modeling_*.py"))
        text = "".join(file.read_text() for file in files)
        if "Attention(nn.Module)" in text and "get_interface" not in text:
            outside.add(model_type)
    assert outside == OUTSIDE_THE_INTERFACE


def test_the_page_lists_systems_and_types() -> None:
    page = (ROOT / "docs" / "attention.md").read_text()
    assert all(f"\n| `{name}` |" in page for name in attachments())
    listed = page.split("<!-- served -->")[1].split("<!-- /served -->")[0]
    assert [name.strip().strip("`") for name in listed.split(",")] == sorted(SERVED)


def test_errors_as_documents(cli: Cli, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source")
    ran = cli("extend", source, "--attach", "lm-infinite:window=4,sinks=4", *TO, "--out", tmp_path / "out", "--json")
    assert ran.code == 2
    assert json.loads(ran.out)["error"]["cause"] == "lm-infinite: a window of 4 tokens is not larger than 4 sinks"
