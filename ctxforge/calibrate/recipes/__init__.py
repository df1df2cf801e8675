"""What a calibration does, as data: recipes by name, from files, changed by hand; and the plan that follows."""

from ctxforge.calibrate.recipes.named import RECIPES, find_recipe
from ctxforge.calibrate.recipes.plan import CalibrationPlan, StagePlan, make_plan
from ctxforge.calibrate.recipes.read import checked, read_recipe
from ctxforge.calibrate.recipes.types import (
    CalibrationRecipe,
    HeldOutRecipe,
    MemoryRecipe,
    ObjectiveRecipe,
    OptimiserRecipe,
    RowRecipe,
)

__all__ = [
    "RECIPES",
    "CalibrationPlan",
    "CalibrationRecipe",
    "HeldOutRecipe",
    "MemoryRecipe",
    "ObjectiveRecipe",
    "OptimiserRecipe",
    "RowRecipe",
    "StagePlan",
    "checked",
    "find_recipe",
    "make_plan",
    "read_recipe",
]
