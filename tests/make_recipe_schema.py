"""Writes adaptool/recipes/recipe.schema.json from the verbs: run it after changing one."""

from __future__ import annotations

from pathlib import Path

from adaptool.api.recipe_verbs import RecipeSchema

TARGET = Path(__file__).resolve().parents[1] / "adaptool" / "recipes" / "recipe.schema.json"

if __name__ == "__main__":
    TARGET.write_text(RecipeSchema.made(), encoding="utf-8")
