"""How T draws: against 20,000 draws of the authors' sampler and whole released pipelines."""

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train.transforms import OPS, TransformOperator
from train.transforms.crops import resize_tail, resized_crop

DRAWS = 20_000


def released_names(golden: Path) -> dict[str, str]:
    rows = json.loads((golden / "transforms" / "ops.json").read_text())["rows"]
    return {row["op"]: list(OPS)[row["op_index"]] for row in rows}


def test_draws_follow_the_released_distribution(golden: Path) -> None:
    """Number of ops, inclusion, order, grid values and continuous ranges are the released sampler's, within 4 sigma."""
    facts = json.loads((golden / "transforms" / "sampler.json").read_text())
    names = released_names(golden)
    rng, operator = np.random.default_rng(11), TransformOperator()
    counts, included = Counter(), Counter()
    values: dict[str, list[dict]] = defaultdict(list)
    order = list(OPS)
    for _ in range(DRAWS):
        steps = operator.sample(rng)
        indices = [order.index(name) for name, _ in steps]
        assert indices == sorted(set(indices))
        counts[len(steps)] += 1
        for name, parameters in steps:
            included[name] += 1
            values[name].append(parameters)
    for number in (0, 1, 2):
        assert counts[number] == pytest.approx(DRAWS / 3, abs=270)
    for name in OPS:
        assert included[name] == pytest.approx(DRAWS / 19, abs=127)
    for released, grid in facts["grid_values"].items():
        drawn = Counter(
            json.dumps({k: v for k, v in parameters.items() if k != "seed"}, sort_keys=True)
            for parameters in values[names[released]]
        )
        expected = [
            json.dumps({k: v for k, v in parameters.items() if k != "seed"}, sort_keys=True) for parameters in grid
        ]
        assert set(drawn) == set(expected)
        assert min(drawn.values()) > 140 and max(drawn.values()) < 280
    for released, spread in facts["continuous_params"].items():
        drawn_values = [parameters[spread["param"]] for parameters in values[names[released]]]
        low, high = spread["declared_min"], spread["declared_max"]
        assert min(drawn_values) >= low and max(drawn_values) <= high
        assert np.mean(drawn_values) == pytest.approx(
            (low + high) / 2, abs=4 * (high - low) / 12**0.5 / len(drawn_values) ** 0.5
        )


def test_sampled_seeds_vary() -> None:
    """No two draws of shuffle_pixels or random_crop share a seed."""
    rng, operator = np.random.default_rng(0), TransformOperator()
    seeds = [parameters["seed"] for _ in range(2000) for _, parameters in operator.sample(rng) if "seed" in parameters]
    assert len(seeds) > 100
    assert len(set(seeds)) == len(seeds)


def test_pipelines_match_the_release(golden: Path) -> None:
    """Crop, ops and tail chained give the released view, exactly or within Pillow's version difference."""
    folder, names = golden / "transforms", released_names(golden)
    for case in json.loads((folder / "pipeline.json").read_text())["cases"]:
        image = Image.open(folder / case["input"]).convert("RGB")
        steps = []
        for step in case["steps"]:
            if step["step"] == "RandomResizedCrop":
                image = resized_crop(image, step["i"], step["j"], step["h"], step["w"])
            elif "op_index" in step or step["step"] == "RandomCrop":
                place = {"top": step["i"], "left": step["j"]} if step["step"] == "RandomCrop" else {}
                steps.append((names[step["step"]], step["params"] | place))
        view = resize_tail(TransformOperator().apply(image, steps))
        delta = np.abs(view.astype(int) - np.asarray(Image.open(folder / case["output"]).convert("RGB")).astype(int))
        assert delta.max() <= 16 and delta.mean() <= 1, case["id"]
        if case["other_version_diff"]["max_abs"] == 0:
            assert delta.max() == 0, case["id"]


def test_operator_limits_its_number_of_ops() -> None:
    """max_ops = 0 draws nothing (the ablation without T) and a number beyond the list is refused."""
    assert all(TransformOperator(0).sample(np.random.default_rng(seed)) == [] for seed in range(20))
    with pytest.raises(ValueError, match="max_ops"):
        TransformOperator(20)


def test_apply_refuses_an_unknown_op() -> None:
    """A step that is none of the 19 is a KeyError."""
    with pytest.raises(KeyError):
        TransformOperator().apply(Image.new("RGB", (4, 4)), [("emboss", {})])
