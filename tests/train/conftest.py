"""What tests of training share: golden values (the committed part, or the whole set named by ASSAY_GOLDEN), images, the
command line.
"""

import os
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from train.data.synthetic import write_synthetic_folder


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder with transforms/, crops/, loss/ and schedule/."""
    return Path(os.environ.get("ASSAY_GOLDEN") or Path(__file__).parents[1] / "golden")


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """The machine is shared, and small tensors run slower on many threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with eight synthetic photographs and their fakes; nobody writes into it."""
    folder = tmp_path_factory.mktemp("images")
    write_synthetic_folder(folder, 8, size=64)
    return folder


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()
