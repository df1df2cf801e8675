"""The recipes that have names, each with where its numbers come from."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from ctxforge.calibrate.adapters.recipe import AdapterRecipe, named_recipe
from ctxforge.calibrate.recipes.types import CalibrationRecipe, ObjectiveRecipe, OptimiserRecipe, RowRecipe
from ctxforge.errors import UsageError

_LORA = AdapterRecipe(low_rank=("attention", "mlp"), whole=("norm",))

RECIPES: Mapping[str, CalibrationRecipe] = {
    recipe.name: recipe
    for recipe in (
        CalibrationRecipe(
            name="quick",
            about="PoSE rows at the cost of the trained length, LoRA and norms, states held to the source's: minutes",
            steps=240,
            rows=RowRecipe(placement="pose", chunks=2, content="contiguous", short_share=0.3),
            adapter=_LORA,
            objective=ObjectiveRecipe(restoration=10.0),
            optimiser=OptimiserRecipe(schedule="linear"),
        ),
        CalibrationRecipe(
            name="full",
            about="rows of the whole target length, LoRA and norms: the lengths that PI and YaRN trained at",
            steps=400,
            rows=RowRecipe(placement="full-length"),
            adapter=_LORA,
            optimiser=OptimiserRecipe(warmup=20),
        ),
        CalibrationRecipe(
            name="longlora",
            about="S2-Attn while training, LoRA with whole norms and embeddings (2309.12307)",
            steps=1000,
            rows=RowRecipe(placement="full-length", attention="shifted-sparse"),
            adapter=named_recipe("lora+"),
            optimiser=OptimiserRecipe(warmup=20),
        ),
        CalibrationRecipe(
            name="pose",
            about="PoSE as published: 1000 steps, all weights, two chunks (2309.10400)",
            steps=1000,
            rows=RowRecipe(placement="pose", chunks=2, short_share=0.3),
            adapter=named_recipe("full"),
            optimiser=OptimiserRecipe(warmup=10),
        ),
        CalibrationRecipe(
            name="abf",
            about="continual training for an adjusted base: short rows first, all weights, cosine (2309.16039)",
            steps=1000,
            rows=RowRecipe(placement="full-length", first_share=0.4, short_share=0.5),
            adapter=named_recipe("full"),
            objective=ObjectiveRecipe(train_on="long-prompts"),
            optimiser=OptimiserRecipe(schedule="cosine", warmup=20),
        ),
        CalibrationRecipe(
            name="mixed",
            about="LongRoPE2's mixed windows: short documents keep the source's own rotation (2502.20082)",
            steps=1000,
            rows=RowRecipe(placement="mixed-windows", short_share=0.5),
            adapter=named_recipe("full"),
            optimiser=OptimiserRecipe(schedule="cosine", warmup=20),
        ),
        CalibrationRecipe(
            name="drope",
            about="recalibration without positions, at the trained length, all weights (2512.12167)",
            steps=2000,
            rows=RowRecipe(placement="full-length", length="trained", short_share=0.3),
            adapter=named_recipe("full"),
            optimiser=OptimiserRecipe(schedule="cosine", warmup=100),
        ),
        CalibrationRecipe(
            name="xpos",
            about="xPos with a scale base that falls from none to the target's own, all weights",
            steps=1000,
            rows=RowRecipe(placement="full-length"),
            adapter=named_recipe("full"),
            optimiser=OptimiserRecipe(warmup=20),
            scale_base="annealed",
        ),
        CalibrationRecipe(
            name="giraffe",
            about="Giraffe's randomised positions, all weights (2308.10882)",
            steps=1000,
            rows=RowRecipe(placement="randomised"),
            adapter=named_recipe("full"),
            optimiser=OptimiserRecipe(warmup=20),
        ),
    )
}


def find_recipe(name: str) -> CalibrationRecipe:
    """A recipe by its name.

    Raises:
        UsageError: there is none; the nearest name is in the message.
    """
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name, RECIPES, n=1)
    hint = f"did you mean {near[0]}? There are " if near else "choose one of "
    raise UsageError(f"there is no recipe {name!r}", f"{hint}{', '.join(RECIPES)}, or give a .toml or .json file")
