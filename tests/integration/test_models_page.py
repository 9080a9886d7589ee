"""The commands of docs/models.md, run in order as they stand there, on a stack of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_readme import BLOCK, REPO

PAGE = (REPO / "docs" / "models.md").read_text(encoding="utf-8")


def test_every_shell_block_of_the_page_is_tested() -> None:
    """Nothing on the page may rot unseen."""
    assert len(BLOCK.findall(PAGE)) == PAGE.count("```bash\n") > 2


@pytest.mark.integration
@pytest.mark.timeout(900)
def test_the_commands_of_the_page_work_in_order(private_stack: Path, tmp_path: Path) -> None:
    """Build, check, verify, shadow, load and back end with 0; the last line says that the first version serves and the other was before."""
    for name in ("triton_models", "tests"):
        (tmp_path / name).symlink_to(REPO / name)
    env = {name: value for name, value in os.environ.items() if not name.startswith("ASSAY_")}
    env |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}", "PYTHONPATH": str(REPO), "ASSAY_STACK__DIR": str(private_stack)}
    script = "\n".join(block for _, block in BLOCK.findall(PAGE))
    done = subprocess.run(["bash", "-euc", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=850, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    places = dict(line.split() for line in done.stdout.strip().splitlines()[-4:])
    assert places["shadow"] == "-"
    assert places["serving"] == places["folder"] != places["previous"]
