"""A config with another base, in transformers 4's keys, or silent about RoPE is read as the model that it makes."""

from __future__ import annotations

import pytest
import torch

from ctxforge.errors import CheckpointError
from ctxforge.rope import understand
from ctxforge.rope.architectures import ARCHITECTURES
from tests.architectures import tiny
from tests.architectures.compare import against_geometry
from tests.architectures.convert import positions
from tests.architectures.measure import measure
from tests.architectures.spellings import SPELLINGS, respelled
from tests.architectures.watch import TOKENS

NAMES = [
    name
    for name in (*tiny.TYPES, *tiny.VARIANTS)
    if name.partition(":")[0] in ARCHITECTURES and name not in tiny.OTHER_POSITIONS
]
# A silent config means another base to transformers 4 than to 5: it must be refused, not guessed.
AMBIGUOUS_WHEN_SILENT = ("cohere", "cohere:qk-norm", "falcon_h1", "fuyu", "persimmon")


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_read_as_the_model_it_makes(name: str) -> None:
    torch.set_num_threads(1)
    model_type = name.partition(":")[0]
    original = tiny.tiny_config(name).to_dict()
    done = []
    for spelling in SPELLINGS:
        config = respelled(original, spelling)
        if config is None:
            continue
        done.append(spelling)
        if spelling == "silent" and name in AMBIGUOUS_WHEN_SILENT:
            with pytest.raises(CheckpointError, match="transformers 5 assumes"):
                understand(config)
            continue
        model = tiny.build_from(name, tiny.read_config(name, config))
        length = model.config.get_text_config().max_position_embeddings
        torch.manual_seed(2)
        given = tiny.inputs(model_type, model, TOKENS)
        measured = measure(model, positions=positions(model_type, length), inputs=given)
        assert against_geometry(measured, understand(config)) == [], spelling
    assert "another base" in done or original.get("rope_parameters") is None
