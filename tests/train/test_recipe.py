"""Recipes: files, overrides, problems and round trips."""

from dataclasses import replace
from pathlib import Path

import pytest

from train.recipe import RECIPES, Recipe, RecipeError, load_recipe, recipe_to_toml


def test_defaults_are_the_paper() -> None:
    """A recipe without a file is the paper's: the values of the released train.sh."""
    recipe = Recipe()
    assert (recipe.optimisation.lr, recipe.optimisation.epochs, recipe.training.batch_size) == (2e-3, 150, 256)
    assert (recipe.loss.temperature, recipe.views.global_scale, recipe.views.local_scale) == (
        0.1,
        (0.4, 1.0),
        (0.05, 0.4),
    )
    assert load_recipe("paper") == recipe


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_kept_recipes_load_and_survive_a_round_trip(path: Path, tmp_path: Path) -> None:
    """Every recipe in train/recipes is valid, named as its file, and is read back from what is written into a run."""
    recipe = load_recipe(path.stem)
    assert recipe.name == path.stem
    (tmp_path / "recipe.toml").write_text(recipe_to_toml(recipe))
    assert load_recipe(tmp_path / "recipe.toml") == recipe


def test_overrides_win_over_the_file() -> None:
    """section.field=value replaces one value; numbers, booleans, lists and bare strings are understood."""
    recipe = load_recipe(
        "smoke", ["optimisation.lr=1e-2", "views.fast=false", "views.local_scale=[0.1, 0.3]", "data.source=/some/where"]
    )
    assert (recipe.optimisation.lr, recipe.views.fast, recipe.views.local_scale, recipe.data.source) == (
        0.01,
        False,
        (0.1, 0.3),
        "/some/where",
    )
    assert recipe.training == load_recipe("smoke").training


def test_any_text_and_number_survives_a_round_trip(tmp_path: Path) -> None:
    """Letters beyond the basic plane, quotes, control characters and the smallest number are read back from what is
    written into a run.
    """
    recipe = load_recipe(None, ["optimisation.lr=5e-324"])
    recipe = replace(recipe, name='\U0001f600 "é" \\ \x7f\n')
    (tmp_path / "recipe.toml").write_text(recipe_to_toml(recipe))
    assert load_recipe(tmp_path / "recipe.toml") == recipe


def test_all_problems_are_named_at_once() -> None:
    """Unknown fields and wrong values each give one line that names the field."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(
            None, ["optimisation.speed=3", "loss.variant=best", "training.batch_size=1", "views.local_size_px=100"]
        )
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    for field in ("optimisation.speed", "loss.variant", "training.batch_size", "views.local_size_px"):
        assert field in text


@pytest.mark.parametrize(
    "override",
    [
        "optimisation.lr=inf",
        "loss.temperature=nan",
        "heads.linear_c=inf",
        "views.global_scale=[0.9, 0.1]",
        "views.local_scale=[0.0, 0.0]",
    ],
)
def test_values_that_cannot_be_meant_are_refused(override: str) -> None:
    """Numbers without end, and areas of a crop that are reversed or nothing, give one line that names the field."""
    with pytest.raises(RecipeError) as caught:
        load_recipe("smoke", [override])
    (problem,) = caught.value.problems
    assert problem.startswith(override.partition("=")[0])


@pytest.mark.parametrize("override", ["optimisation.lr", "=3", "name.x=3", "optimisation..lr=1"])
def test_malformed_overrides_are_refused(override: str) -> None:
    """An override that is no section.field=value says what it should be."""
    with pytest.raises(RecipeError):
        load_recipe("smoke", [override])


def test_missing_or_broken_file_is_one_clear_line(tmp_path: Path) -> None:
    """A recipe that is not there names the known ones; one that is no TOML names the place."""
    with pytest.raises(RecipeError, match=r"known by name: .*paper.*smoke"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("name = = 3")
    with pytest.raises(RecipeError, match=r"broken\.toml"):
        load_recipe(tmp_path / "broken.toml")
