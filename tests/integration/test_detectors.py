"""A worker that asks a second detector on the real Triton: its scores in verdicts, rules over both, and its end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.integration.conftest import SHORT_SESSION
from tests.integration.harness import Outside, running_worker, samples, unlike
from tests.triton_models.test_detector import write_folder
from tests.triton_processes import model_processes
from triton_models import build
from worker.local import stack as local_stack
from worker.local.server import free_port

REPO = Path(__file__).resolve().parents[2]
POLICY = """
name = "two"
[[rules]]
when = 'has(detectors.small) && detectors.small.linear >= 0.0'
decision = "fake"
label = "asked"
"""


@pytest.mark.integration
@pytest.mark.timeout(400)
def test_a_second_detector_is_asked_about_the_contested(private_stack: Path, tmp_path: Path) -> None:
    """Verdicts of those for which the condition holds have its scores and are decided by them; all others do not. Equal
    bytes are not shown to it twice. Without it, the scores of the first are what they were.
    """
    small = write_folder(tmp_path / "small")
    repository = tmp_path / "models"
    build.build(REPO / "triton_models" / "weights" / "demo", "cpu", repository, detectors=[small])
    status = local_stack.up(private_stack, models=repository)
    (tmp_path / "policy.toml").write_text(POLICY)
    kinds = ("incoming", "verdicts", "rejected")
    env = {**os.environ, **status.env, **SHORT_SESSION}
    env |= {f"ASSAY_KAFKA__{kind.upper()}_TOPIC": f"images.{kind}" for kind in kinds}
    env |= {"ASSAY_KAFKA__GROUP_ID": "two", "ASSAY_REDIS__KEY_PREFIX": "assay:", "ASSAY_HTTP__PORT": str(free_port())}
    asking = {
        "ASSAY_DETECTORS__NAMES": "small",
        "ASSAY_DETECTORS__WHEN": "image.format != 'png'",
        "ASSAY_POLICY__PATH": str(tmp_path / "policy.toml"),
    }
    images = samples(24)
    outside = Outside(env)
    with running_worker(env, tmp_path / "asking.log", **asking) as worker:
        outside.send_all(images)
        verdicts = outside.wait_verdicts(images)
        for verdict in verdicts.values():
            is_png = verdict["image"]["format"] == "png"  # type: ignore[index]
            assert (verdict["detectors"] == {}) == is_png
            assert (verdict["decision"] == "fake") == (not is_png)
            if not is_png:
                found = verdict["detectors"]["small"]  # type: ignore[index]
                assert found["version"] == small.version
                assert {*found["scores"]} == {"linear", "knn", "svm"}
        assert {verdict["image"]["format"] == "png" for verdict in verdicts.values()} == {True, False}  # type: ignore[index]
        asked = worker.metric("assay_detector_images_total", detector="small", outcome="scored")
        spared = worker.metric("assay_detector_images_total", detector="small", outcome="spared")
        assert (asked + spared, spared > 0) == (24, True)
        outside.send_all({f"again/{image_id}": data for image_id, data in images.items()})
        again = outside.wait_verdicts([f"again/{image_id}" for image_id in images])
        assert {verdict["source"] for verdict in again.values()} == {"cache"}
        for image_id, verdict in verdicts.items():
            assert again[f"again/{image_id}"]["detectors"] == verdict["detectors"]
        assert worker.metric("assay_detector_images_total", detector="small", outcome="scored") == asked
        assert worker.terminate() == 0
    jpeg = next(name for name, verdict in verdicts.items() if verdict["image"]["format"] == "jpeg")  # type: ignore[index]
    with running_worker(env, tmp_path / "alone.log") as alone:
        other = unlike(images[jpeg], 1)
        outside.send_all({"alone": other, "cached": images[jpeg]})
        without = outside.wait_verdicts(["alone", "cached"])
        assert without["cached"]["source"] == "cache"
        for verdict in without.values():
            assert verdict["scores"] == verdicts[jpeg]["scores"]
            assert verdict["detectors"] == {}
        assert alone.terminate() == 0
    outside.close()


@pytest.mark.integration
@pytest.mark.timeout(200)
def test_a_detector_that_the_server_lacks_is_told_in_one_line(worker_env: dict[str, str], run_cli: object) -> None:
    """`check` says which one, and what to do: exit 3; a wrong expression is exit 2."""
    assert callable(run_cli)
    done = run_cli("check", "--json", env={**worker_env, "ASSAY_DETECTORS__NAMES": "nobody"})
    assert done.returncode == 3, done.stdout + done.stderr
    assert "detector nobody" in done.stdout
    wrong = {"ASSAY_DETECTORS__NAMES": "nobody", "ASSAY_DETECTORS__WHEN": "scores.linaer > 1"}
    done = run_cli("check", env={**worker_env, **wrong})
    assert done.returncode == 2
    assert "ASSAY_DETECTORS__WHEN" in done.stderr
    assert "linear" in done.stderr


@pytest.mark.integration
@pytest.mark.timeout(400)
def test_a_detector_that_dies_is_waited_for_by_those_who_ask_it(private_stack: Path, tmp_path: Path) -> None:
    """All its processes are killed under load: who needs it gets its scores once the server has loaded it anew, who
    does not is judged meanwhile, and nothing is rejected.
    """
    small = write_folder(tmp_path / "small")
    repository = tmp_path / "models"
    build.build(REPO / "triton_models" / "weights" / "demo", "cpu", repository, detectors=[small])
    status = local_stack.up(private_stack, models=repository)
    triton = status.services["triton"]
    assert triton is not None
    kinds = ("incoming", "verdicts", "rejected")
    env = {**os.environ, **status.env, **SHORT_SESSION}
    env |= {f"ASSAY_KAFKA__{kind.upper()}_TOPIC": f"images.{kind}" for kind in kinds}
    env |= {"ASSAY_KAFKA__GROUP_ID": "die", "ASSAY_REDIS__KEY_PREFIX": "assay:", "ASSAY_HTTP__PORT": str(free_port())}
    asking = {"ASSAY_DETECTORS__NAMES": "small", "ASSAY_DETECTORS__WHEN": "image.format != 'png'"}
    pictures = samples(24)
    outside = Outside(env)
    with running_worker(env, tmp_path / "worker.log", **asking) as worker:
        killed: set[int] = set()
        wanted: list[str] = []
        for round_number in range(4):
            images = {f"{round_number}/{name}": unlike(data, round_number) for name, data in pictures.items()}
            outside.send_all(images)
            wanted += images
            if round_number == 1:
                for pid in model_processes(triton.pid, "small"):
                    killed.add(pid)
                    os.kill(pid, signal.SIGKILL)
        verdicts = outside.wait_verdicts(wanted)
        assert killed
        for verdict in verdicts.values():
            is_png = verdict["image"]["format"] == "png"  # type: ignore[index]
            assert (verdict["detectors"] == {}) == is_png
        assert outside.rejections() == {}
        assert not killed & {*model_processes(triton.pid, "small")}
        assert worker.terminate() == 0
    outside.close()
