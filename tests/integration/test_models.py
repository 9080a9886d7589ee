"""Models in operation: the commands of docs/models.md in order as they stand there, and a worker that follows a
roll-out and a roll-back.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import SHORT_SESSION
from tests.integration.harness import Outside, running_worker, samples, unlike, wait_until
from tests.integration.test_readme import BLOCK, REPO
from triton_models import build
from worker.local import stack as local_stack
from worker.local.server import free_port
from worker.stages.shadow import is_sampled

PAGE = (REPO / "docs" / "models.md").read_text(encoding="utf-8")


def test_every_shell_block_of_the_page_is_tested() -> None:
    """Nothing on the page may rot unseen."""
    assert len(BLOCK.findall(PAGE)) == PAGE.count("```bash\n") > 2


@pytest.mark.integration
@pytest.mark.timeout(900)
def test_the_commands_of_the_page_work_in_order(private_stack: Path, tmp_path: Path) -> None:
    """Build, check, verify, shadow, load and back end with 0; the last line says that the first version serves and the
    other was before.
    """
    for name in ("triton_models", "tests"):
        (tmp_path / name).symlink_to(REPO / name)
    env = {name: value for name, value in os.environ.items() if not name.startswith("ASSAY_")}
    env |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}",
        "PYTHONPATH": str(REPO),
        "ASSAY_STACK__DIR": str(private_stack),
    }
    script = "\n".join(block for _, block in BLOCK.findall(PAGE))
    done = subprocess.run(
        ["bash", "-euc", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=850, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    places = dict(line.split() for line in done.stdout.strip().splitlines()[-4:])
    assert places["shadow"] == "-"
    assert places["serving"] == places["folder"] != places["previous"]


@pytest.mark.integration
@pytest.mark.slow
def test_a_worker_follows_a_roll_out_and_a_roll_back(private_stack: Path, tmp_path: Path) -> None:
    """One command each, no restart: verdicts name the version that serves; a shadow sees its share of the images, by
    their hash.
    """
    live, new = tmp_path / "live", tmp_path / "new"
    old_version = build.build(REPO / "triton_models" / "weights" / "demo", "cpu", live)["model_version"]
    new_version = build.build(None, "null", new)["model_version"]
    status = local_stack.up(private_stack, models=live)
    names = {f"ASSAY_KAFKA__{kind.upper()}_TOPIC": f"images.{kind}" for kind in ("incoming", "verdicts", "rejected")}
    names |= {
        "ASSAY_KAFKA__GROUP_ID": "models",
        "ASSAY_REDIS__KEY_PREFIX": "assay:",
        "ASSAY_HTTP__PORT": str(free_port()),
    }
    env = {**os.environ, **status.env, **SHORT_SESSION, **names, "ASSAY_SHADOW__SHARE": "0.5"}
    outside = Outside(env)
    image = next(data for name, data in samples().items() if name.endswith(".jpg"))
    sent: list[bytes] = []

    def rollout(action: str, *options: str) -> None:
        command = [
            sys.executable,
            "-m",
            "triton_models.rollout",
            action,
            "--repository",
            str(live),
            "--server",
            env["ASSAY_TRITON__URL"],
            *options,
        ]
        subprocess.run(command, check=True, capture_output=True, cwd=REPO, env=env)

    def judged_by(count: int = 8) -> set[str]:
        images = {f"{len(sent) + number}": unlike(image, len(sent) + number) for number in range(count)}
        sent.extend(images.values())
        outside.send_all(images)
        return {verdict["model"]["version"] for verdict in outside.wait_verdicts(images).values()}

    rollout("shadow", "--new", str(new))
    with running_worker(outside.env, tmp_path / "worker.log") as worker:
        assert judged_by() == {old_version}
        rollout("load", "--new", str(new))
        wait_until(
            lambda: [event["version"] for event in worker.events("model_version")] == [old_version, new_version],
            "the worker follows",
        )
        assert judged_by() == {new_version}
        rollout("back")
        wait_until(lambda: len(worker.events("model_version")) == 3, "the worker follows back")
        assert judged_by() == {old_version}
        sampled = sum(is_sampled(hashlib.sha256(content).hexdigest(), 0.5) for content in sent)
        assert 0 < sampled < len(sent)
        wait_until(
            lambda: worker.metric("assay_shadow_images_total", outcome="compared") == sampled,
            "every sampled image compared",
        )
        assert outside.redis.xlen(f"{outside.prefix}shadow:code_shadow") == sampled
        assert worker.terminate() == 0
    outside.close()
