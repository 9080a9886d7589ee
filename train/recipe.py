"""The recipe: every knob of training as one dataclass tree, with units in the names. The defaults are the paper's.

    recipe = load_recipe("train/recipes/smoke.toml", ["optimisation.lr=1e-3", "views.local_size_px=96"])

A TOML file names only what differs from the defaults; `section.field=value` overrides on top. pydantic's dataclasses
check types and ranges, so that a wrong recipe is one clear line per problem (RecipeError) before anything is loaded.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from train.losses import Terms, Variant
from triton_models.weights import ENCODER_NAME


def _in_order(scale: tuple[float, float]) -> tuple[float, float]:
    least, most = scale
    if least > most or most == 0:
        raise ValueError("expected [least, most] of the image's area, the most above 0")
    return scale


def _rising(qualities: tuple[()] | tuple[int, int]) -> tuple[()] | tuple[int, int]:
    if tuple(sorted(qualities)) != qualities:
        raise ValueError("expected [least, most] of JPEG's quality, or [] for none")
    return qualities


RECIPES = Path(__file__).parent / "recipes"
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Fraction = Annotated[float, Field(ge=0, le=1)]
Scale = Annotated[tuple[Fraction, Fraction], AfterValidator(_in_order)]
Quality = Annotated[int, Field(ge=1, le=100)]
Qualities = Annotated[tuple[()] | tuple[Quality, Quality], AfterValidator(_rising)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class RecipeError(ValueError):
    """The recipe is wrong; `problems` has one line for each, naming the field."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, config=_STRICT)
class Data:
    """What is trained on. `source` is a folder (`real/`, `fake/<generator>/`) or a folder of shards; `validation`
    likewise, or a part of it.
    """

    source: str = ""
    validation: str = ""
    validation_fraction: Fraction = 0.1  # held out by record id where `validation` is empty
    min_side_px: Count = 32  # smaller images are left out, and counted
    shuffle_window: Count = 1000  # records; shards are read in windows of this size, as the released shuffle buffer
    shards_at_once: Count = 16  # read side by side; 1 = one after the other: a batch is then of one shard or two
    resample: bool = False  # draw shards with replacement, as the released code did
    workers: Annotated[int, Field(ge=0)] = 8  # data processes per training process


@dataclass(frozen=True, config=_STRICT)
class Views:
    """The eight views of a record. `resize248`: shorter side to size / 0.9 (248), then the centre; `native_crop`: the
    centre as at inference.
    """

    max_ops: Annotated[int, Field(ge=0, le=19)] = 2
    global_scale: Scale = (0.4, 1.0)
    local_scale: Scale = (0.05, 0.4)
    size_px: Literal[112, 224] = (
        224  # of all views but the local crops; 112 is for small machines: a quarter of the work
    )
    local_size_px: Literal[96, 224] = 224  # the paper says 96, the released code puts out 224
    tail: Literal["resize248", "native_crop"] = "resize248"
    # Beyond the paper, off as released. `shared_ops`: both images of a record meet the same ops, so that no degradation
    # tells the label. `jpeg_history`: both were last saved as JPEG of one quality, drawn from [least, most].
    shared_ops: bool = False
    jpeg_history: Qualities = ()
    fast: bool = True  # off = the PIL reference
    made_on: Literal["auto", "workers", "device"] = (
        "auto"  # data processes, or a batch at a time on the training device; auto = there if it is a GPU
    )


@dataclass(frozen=True, config=_STRICT)
class Loss:
    """Contrastive loss: see train/losses.py."""

    temperature: Positive = 0.1
    variant: Variant = "symmetric"
    terms: Terms = "both"


@dataclass(frozen=True, config=_STRICT)
class Optimisation:
    """AdamW and a cosine over `epochs` after a linear warm-up, constant within an epoch."""

    lr: Positive = 2e-3
    epochs: Count = 150
    warmup_epochs: Annotated[int, Field(ge=0)] = 5
    warmup_lr: Annotated[float, Field(ge=0)] = 1e-6
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    warmup_prefix: bool = False  # True: the cosine starts after the warm-up instead of running underneath it
    weight_decay: Annotated[float, Field(ge=0)] = 2e-5
    per_step: bool = False  # the rate moves with every step instead of once an epoch: for short runs


@dataclass(frozen=True, config=_STRICT)
class Training:
    """The loop. `batch_size` is records per process and micro-batch; each record gives eight views."""

    seed: Annotated[int, Field(ge=0)] = 42
    batch_size: Annotated[int, Field(ge=2)] = 256
    accumulation_steps: Count = 1
    steps_per_epoch: Annotated[int, Field(ge=0)] = 1700  # 0 = once through the data
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp16"  # auto: bf16 where the hardware has it, else fp32
    device: Literal["auto", "cpu", "cuda"] = "auto"
    encoder: str = ENCODER_NAME  # timm's name; the served graphs take ViT-Tiny alone
    # pretrained: timm's weights, from the hub; spectral: see train/spectral.py, for small data
    initialisation: Literal["timm", "pretrained", "spectral"] = "timm"
    start_from: str = ""  # weights folder whose encoder to begin with; empty = as `initialisation` says
    checkpoint_every_steps: Count = 500
    max_bad_steps: Count = 20  # consecutive non-finite losses before giving up
    image_cache_mb: Annotated[int, Field(ge=0)] = 0  # per data process: decoded images kept in memory, for small sets


@dataclass(frozen=True, config=_STRICT)
class Validation:
    """A linear probe on clean validation images; training stops after `patience` probes without a better AUC."""

    every_epochs: Count = 1
    patience: Count = 6
    max_collapsed: Count = 3  # probes in a row of a collapsed encoder before the run ends
    max_images_per_class: Count = 4800


@dataclass(frozen=True, config=_STRICT)
class HeadFit:
    """The three heads as released: logistic regression, 1-NN (cosine) and a one-class SVM on reals (polynomial kernel,
    gamma `auto`).
    """

    linear_c: Positive = 0.316
    linear_max_iter: Count = 1500
    svm_nu: Annotated[float, Field(gt=0, le=1)] = 0.1
    svm_degree: Count = 3
    bank_limit: Count = 48_000  # rows of the 1-NN bank
    max_images_per_class: Count = 48_000  # to fit on, drawn at random; the released heads had 9,600 records
    transformed: bool = True  # fit on images under T, as the released heads were
    calibration_fraction: Fraction = 0.2  # of the embeddings, held out of the fit for the calibrated variant


@dataclass(frozen=True, config=_STRICT)
class Recipe:
    """One training run."""

    name: str = "paper"
    data: Data = dataclasses.field(default_factory=Data)
    views: Views = dataclasses.field(default_factory=Views)
    loss: Loss = dataclasses.field(default_factory=Loss)
    optimisation: Optimisation = dataclasses.field(default_factory=Optimisation)
    training: Training = dataclasses.field(default_factory=Training)
    validation: Validation = dataclasses.field(default_factory=Validation)
    heads: HeadFit = dataclasses.field(default_factory=HeadFit)


def load_recipe(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a TOML file (a path, or the name of one in train/recipes; None = defaults) with
    `section.field=value` overrides.

    Raises RecipeError naming every unknown field and wrong value at once.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        file = Path(path)
        if not file.exists() and (RECIPES / f"{path}.toml").exists():
            file = RECIPES / f"{path}.toml"
        try:
            tree = tomllib.loads(file.read_text())
        except OSError as error:
            known = ", ".join(sorted(recipe.stem for recipe in RECIPES.glob("*.toml")))
            raise RecipeError([f"recipe {path}: {error.strerror or error}; known by name: {known}"]) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError([f"recipe {file}: {error}"]) from error
    for override in overrides:
        _apply_override(tree, override)
    try:
        return TypeAdapter(Recipe).validate_python(tree)
    except ValidationError as error:
        raise RecipeError([_problem(detail) for detail in error.errors()]) from error


def _apply_override(tree: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise RecipeError([f"override {override!r}: expected section.field=value, e.g. optimisation.lr=1e-3"])
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word or path is a string
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise RecipeError([f"override {override!r}: {key} is a value, not a section"])
    tree[keys[-1]] = value


def _problem(detail: Any) -> str:
    field = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "unexpected_keyword_argument":
        return f"{field}: there is no such field (see train/recipe.py)"
    return f"{field} = {detail['input']!r}: {detail['msg']}"


def recipe_to_toml(recipe: Recipe) -> str:
    """The whole recipe, every field, as TOML that `load_recipe` reads back."""
    lines, tree = [], dataclasses.asdict(recipe)
    for name, value in tree.items():
        if not isinstance(value, dict):
            lines.append(f"{name} = {value_to_toml(value)}")
    for name, section in tree.items():
        if isinstance(section, dict):
            lines += ["", f"[{name}]", *(f"{key} = {value_to_toml(value)}" for key, value in section.items())]
    return "\n".join(lines) + "\n"


def value_to_toml(value: Any) -> str:
    """One value as TOML."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(value_to_toml(entry) for entry in value)}]"
    return json.dumps(value, ensure_ascii=False).replace(
        "\x7f", "\\u007f"
    )  # surrogate pairs are no TOML, nor is a bare DEL
