"""The README's commands, run in order as they stand there, against the local stack.

A block under `<!-- tested -->` is run; one under `<!-- tested: background -->` is started, waited for, and ended with
SIGTERM at the end. Of `make` only the targets are checked (they start the test run itself), and `curl` is asked for on
the worker's own port.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.harness import wait_until

REPO = Path(__file__).resolve().parents[2]
README = (REPO / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"<!-- tested(: background)? -->\n```bash\n(.*?)```", re.DOTALL)
MAKE = re.compile(r"^make ([a-z-]+)", re.MULTILINE)
CURL = re.compile(r"^curl --fail http://127\.0\.0\.1:9464(/\S+)", re.MULTILINE)


def test_every_shell_block_is_tested() -> None:
    """Nothing in the README may rot unseen."""
    assert len(BLOCK.findall(README)) == README.count("```bash\n") > 8


def test_every_make_target_exists() -> None:
    """Also of those that are only mentioned."""
    targets = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder like the checkout, into which a command may write."""
    (tmp_path / "tests").symlink_to(REPO / "tests")
    return tmp_path


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """What runs in the background; whatever is left at the end is killed."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.integration
def test_the_commands_work_in_order(
    worker_env: dict[str, str], folder: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    """Every block ends with 0; the worker that one of them started is ready for the next and ends with 0 on SIGTERM."""
    env = {
        **worker_env,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{worker_env['PATH']}",
        "PYTHONPATH": str(REPO),
    }
    url = f"http://127.0.0.1:{env['ASSAY_HTTP__PORT']}"

    def is_ready() -> bool:
        assert started[-1].poll() is None, (folder / "log").read_text(errors="replace")
        try:
            return httpx.get(f"{url}/readyz", timeout=5, trust_env=False).is_success
        except httpx.HTTPError:
            return False

    for background, block in BLOCK.findall(README):
        for path in CURL.findall(block):
            assert httpx.get(url + path, timeout=10, trust_env=False).is_success, path
        script = CURL.sub("true", MAKE.sub("true", block))
        if background:
            with (folder / "log").open("wb") as log:
                started.append(
                    subprocess.Popen(["bash", "-ec", f"exec {script}"], cwd=folder, env=env, stdout=log, stderr=log)
                )
            wait_until(is_ready, "the worker is ready")
            continue
        done = subprocess.run(
            ["bash", "-euc", script], cwd=folder, env=env, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    for process in started:
        process.terminate()
        assert process.wait(60) == 0
