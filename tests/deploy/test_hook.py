"""`helm test`: the command of its pod, run here against a real worker."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy import chart
from tests.integration.harness import running_worker


@pytest.mark.integration
@pytest.mark.usefixtures("helm")
def test_the_hook_sends_an_image_and_gets_its_verdict(worker_env: dict[str, str], tmp_path: Path) -> None:
    """The pod's arguments and the chart's own image end in one verdict and exit 0, again when the image is known
    already.
    """
    pod = chart.of_kind(chart.objects(chart.manifest("minimal")), "Pod")[0]["spec"]
    arguments = [part.replace("/sample", str(chart.CHART / "files")) for part in pod["containers"][0]["args"]]
    with running_worker(worker_env, tmp_path / "worker.log"):
        for source in ("model", "cache"):
            done = subprocess.run(
                [sys.executable, "-m", "worker", *arguments],
                env=worker_env,
                capture_output=True,
                text=True,
                cwd=tmp_path,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            verdict = json.loads(done.stdout)
            assert (verdict["image_id"], verdict["source"]) == ("assay-helm-test.jpg", source)
