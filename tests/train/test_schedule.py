"""Parameter groups and learning rates against timm's of the released run (tests/golden/schedule)."""

import json
from pathlib import Path

import numpy as np
import pytest

from train.model import create_encoder
from train.recipe import Optimisation
from train.schedule import learning_rate, parameter_groups


def facts(golden: Path) -> dict:
    return json.loads((golden / "schedule" / "schedule.json").read_text())


def test_parameter_groups_are_the_released_ones(golden: Path) -> None:
    """The same tensors, by timm name, have weight decay and none; together they are all 5,524,416 parameters."""
    expected = facts(golden)
    encoder = create_encoder()
    groups = parameter_groups(encoder, 2e-5)
    assert [(group["weight_decay"], sorted(group["names"])) for group in groups] == [
        (group["weight_decay"], sorted(group["names"])) for group in expected["param_groups"]
    ]
    assert (
        sum(parameter.numel() for group in groups for parameter in group["params"])
        == expected["total_parameters"]
        == 5_524_416
    )
    assert {name: list(parameter.shape) for name, parameter in encoder.named_parameters()} == expected["param_shapes"]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_learning_rates_are_the_released_ones(index: int, golden: Path) -> None:
    """Warm-up and cosine give timm's values for each golden schedule, per epoch or per update."""
    plan = facts(golden)["schedules"][index]
    optimisation = Optimisation(
        plan["lr_argument"], plan["t_initial"], plan["warmup_t"], plan["warmup_lr_init"], plan["lr_min"]
    )
    arrays = np.load(golden / "schedule" / plan["file"])
    expected = arrays["lr_in_epoch"] if plan["t_in_epochs"] else arrays["lr_in_update"]
    actual = [learning_rate(step, optimisation) for step in range(len(expected))]
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_default_schedule_has_the_released_peak() -> None:
    """The defaults are the released values: 1e-6 in epoch 0, 0.0019945 in epoch 5, 0 at the end."""
    rates = [learning_rate(epoch) for epoch in range(151)]
    assert rates[0] == 1e-6
    assert max(rates) == rates[5] == pytest.approx(0.0019945218953682734, rel=1e-12)
    assert rates[150] == 0


def test_warmup_prefix_starts_the_cosine_after_the_warmup() -> None:
    """With the prefix the full rate is reached in the first epoch after the warm-up."""
    assert learning_rate(5, Optimisation(warmup_prefix=True)) == 0.002
