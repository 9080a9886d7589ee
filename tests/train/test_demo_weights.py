"""The shipped demo weights' card for people and the one for programs say the same."""

import json
from pathlib import Path

from train.demo_weights import readme

DEMO = Path(__file__).parents[2] / "triton_models" / "weights" / "demo"


def test_the_shipped_card_is_what_the_program_writes() -> None:
    """README.md is made from card.json, and says on which images the calibration was fitted."""
    card = json.loads((DEMO / "card.json").read_text())
    assert (DEMO / "README.md").read_text() == readme(card)
    assert "cut by cut" in card["heads"]["calibration"]
