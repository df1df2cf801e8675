"""Run by transformers 4.57: build each tiny model of a list of configs and print the rotary tables that it has."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM


def tables(config: dict[str, Any]) -> list[dict[str, Any]]:
    """inv_freq and the factor on cos and sin, of each rotary module of the text model."""
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[config["model_type"]].from_dict(config))
    found = []
    for name, module in model.named_modules():
        if any(part in name for part in ("vision", "audio", "depth")):
            continue
        if isinstance(getattr(module, "inv_freq", None), torch.Tensor):
            temperature = getattr(module, "attention_scaling", 1.0)
            found.append({"frequencies": module.inv_freq.tolist(), "temperature": temperature})
        elif hasattr(module, "rope_init_fn"):
            frequencies, _ = module.rope_init_fn(module.config, "cpu", None)
            found.append({"frequencies": frequencies.tolist(), "temperature": getattr(module, "long_mscale", 1.0)})
    return found


def main() -> None:
    """Read configs by name from stdin, write their tables, or the refusal, by name to stdout."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    read: dict[str, Any] = {}
    for name, config in json.load(sys.stdin).items():
        try:
            read[name] = tables(config)
        except Exception as error:  # a refusal is an answer, of whatever type
            read[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(read))  # noqa: T201


if __name__ == "__main__":
    main()
