"""Where the golden values of the released code are: the committed part, or the whole set named by ASSAY_GOLDEN."""

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder with transforms/, crops/, loss/ and schedule/."""
    return Path(os.environ.get("ASSAY_GOLDEN") or Path(__file__).parents[1] / "golden")


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """The machine is shared, and small tensors run slower on many threads."""
    torch.set_num_threads(1)
