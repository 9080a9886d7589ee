"""Training in several processes, and the signals that end them: every rank stops, every run saves."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from tests.train.small_runs import QUIET, small, weights
from train import beginning, engine
from train.distributed import Group
from train.engine import fit
from train.recipe import recipe_to_toml
from train.run_folder import read_metrics

pytestmark = pytest.mark.slow


@dataclasses.dataclass(frozen=True)
class TwoRanks(Group):
    """A rank that hears, at the look numbered `told_at`, that the other one stops; `said` has what it told itself."""

    told_at: int = 99
    said: list[bool] = dataclasses.field(default_factory=list)

    def any(self, flag: bool) -> bool:
        self.said.append(flag)
        return flag or len(self.said) == self.told_at


@pytest.mark.parametrize("lost_here", [True, False])
def test_a_rank_that_lost_its_data_to_the_signal_stops_all(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, lost_here: bool
) -> None:
    """Where a signal ends one rank's data process, that rank tells the others before it leaves, and they leave too."""
    group = TwoRanks(0, 1, torch.device("cpu"), told_at=99 if lost_here else 4)
    stopping = threading.Event()
    monkeypatch.setattr(beginning, "process_group", lambda _: nullcontext(group))
    monkeypatch.setattr(engine, "_stop_on_signal", lambda: nullcontext(stopping))
    true_batches = engine.make_batches

    def cut_off(*arguments: object) -> Iterator[object]:
        batches = true_batches(*arguments)
        yield next(batches)
        stopping.set()
        raise RuntimeError("DataLoader worker exited unexpectedly")

    if lost_here:
        monkeypatch.setattr(engine, "make_batches", cut_off)
    result = fit(small(images), tmp_path, console=QUIET)
    assert (result.status, result.step) == ("interrupted", 1)
    assert group.said[-1] is lost_here


@pytest.mark.slow
def test_two_processes_on_gloo_train_together(images: Path, tmp_path: Path) -> None:
    """torchrun with two CPU processes finishes, one of them writes, and the losses are those of numbers."""
    script = tmp_path / "two.py"
    recipe = small(images, "optimisation.epochs=1", "training.device=cpu")
    (tmp_path / "recipe.toml").write_text(recipe_to_toml(recipe))
    script.write_text(
        "import sys, torch\nfrom pathlib import Path\nfrom rich.console import Console\nfrom train.engine "
        "import fit\nfrom train.recipe import load_recipe\n"
        "torch.set_num_threads(1)\nprint(fit(load_recipe(sys.argv[1]), Path(sys.argv[2]), "
        "console=Console(quiet=True)))\n"
    )
    root = Path(engine.__file__).parents[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(tmp_path / "recipe.toml"), str(tmp_path / "run")],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("status='finished'") == 2
    steps = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "step"]
    assert [line["step"] for line in steps] == [1, 2]


def wait_for_a_step(process: subprocess.Popen[str], run: Path) -> None:
    """The probe before training comes first in a run's metrics."""
    waiting = threading.Event()
    while process.poll() is None and not any(line["kind"] == "step" for line in read_metrics(run)):
        waiting.wait(0.05)


@pytest.mark.slow
def test_sigterm_saves_and_ends(images: Path, tmp_path: Path) -> None:
    """A process that gets SIGTERM in training writes its checkpoint and exits 0; the run can be continued."""
    (tmp_path / "recipe.toml").write_text(
        recipe_to_toml(small(images, "training.steps_per_epoch=500", "data.workers=1"))
    )
    script = tmp_path / "one.py"
    script.write_text(
        "import sys, torch\nfrom pathlib import Path\nfrom rich.console import Console\nfrom train.engine "
        "import fit\nfrom train.recipe import load_recipe\n"
        "torch.set_num_threads(1)\nprint(fit(load_recipe(sys.argv[1]), Path(sys.argv[2]), "
        "console=Console(quiet=True)), flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(engine.__file__).parents[1]), "CUDA_VISIBLE_DEVICES": ""}
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "recipe.toml"), str(run)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    wait_for_a_step(process, run)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "interrupted" in output
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    assert state["progress"]["step"] == max(line["step"] for line in read_metrics(run)) >= 1


@pytest.mark.slow
def test_sigterm_to_the_whole_group_saves_and_ends(images: Path, tmp_path: Path) -> None:
    """A signal to every process of a run, as `timeout` and systemd send it, saves too; no data process stays, and the
    run resumed is the uninterrupted one.
    """
    (tmp_path / "recipe.toml").write_text(
        recipe_to_toml(small(images, "training.steps_per_epoch=8", "optimisation.epochs=1", "data.workers=2"))
    )
    environment = os.environ | {
        "PYTHONPATH": str(Path(engine.__file__).parents[1]),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }

    def begin(run: Path, *options: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "train.main",
            "fit",
            "--recipe",
            str(tmp_path / "recipe.toml"),
            "--run",
            str(run),
            *options,
        ]
        return subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path, start_new_session=True
        )

    stopped, whole = begin(tmp_path / "stopped"), begin(tmp_path / "whole")
    wait_for_a_step(stopped, tmp_path / "stopped")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        os.killpg(stopped.pid, number)
    _, said = stopped.communicate(timeout=120)
    assert stopped.returncode == 0 and "interrupted" in said, said
    with pytest.raises(ProcessLookupError):
        os.killpg(stopped.pid, 0)
    _, said = begin(tmp_path / "stopped", "--resume").communicate(timeout=120)
    assert "finished after 8 steps" in said, said
    assert "finished after 8 steps" in whole.communicate(timeout=120)[1]
    resumed, expected = weights(tmp_path / "stopped"), weights(tmp_path / "whole")
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def pending_signals(process: int) -> int:
    """The signals sent to a process as a whole that none of its threads has taken, one bit each."""
    return int(Path(f"/proc/{process}/status").read_text().split("ShdPnd:")[1].split()[0], 16)


def test_a_data_process_ends_when_its_parent_says_so(tmp_path: Path) -> None:
    """A data process that hangs ignores the SIGTERM of others, and ends at once at that of the process it works for."""
    hang = tmp_path / "hang.py"
    hang.write_text(
        "import os, signal, subprocess, sys, time\nfrom train.data.loader import _begin_data_process\n"
        "child = os.fork()\nif child == 0:\n    _begin_data_process(0)\n    os.write(1, b'ready\\n')\n    "
        "time.sleep(100)\n    os._exit(3)\n"
        "sys.stdin.readline()\nprint(os.waitpid(child, os.WNOHANG)[0], flush=True)\n"
        "os.kill(child, signal.SIGTERM)\nprint(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    path = {"PYTHONPATH": str(Path(engine.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, str(hang)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | path
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
    os.kill(child, signal.SIGTERM)
    waiting = threading.Event()
    while (
        pending_signals(child) >> (signal.SIGTERM - 1) & 1
    ):  # a second one would be lost while the first waits to be taken
        waiting.wait(0.01)
    assert process.communicate("go\n", timeout=60)[0] == "0\n0\n"
