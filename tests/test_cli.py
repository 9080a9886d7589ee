"""The command line as a user meets it: exit codes, help, and stdout that a script can rely on.

`process` starts `python -m worker`, for each exit code at least once; `invoke` runs the same app inside, which takes no
second.
"""

from __future__ import annotations

import json
import os
import re
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from worker import __version__
from worker.check import Finding
from worker.cli import app
from worker.cli.stack import stack_app

REPO = Path(__file__).resolve().parents[1]
COMMANDS = [[info.name or info.callback.__name__] for info in app.registered_commands if info.callback]
COMMANDS += [["stack", info.name or ""] for info in stack_app.registered_commands]
NOBODY = "127.0.0.1:1"  # tcpmux: nothing listens there


ENVIRON = {
    "COLUMNS": "200",
    "TERMINAL_WIDTH": "200",
    "NO_COLOR": "1",
    "ASSAY_STACK__DIR": "/nonexistent",
    "ASSAY_KAFKA__BOOTSTRAP_SERVERS": NOBODY,
    "ASSAY_KAFKA__REQUEST_TIMEOUT_MS": "1000",  # how long a broker is waited for that is not there
    "ASSAY_REDIS__URL": f"redis://:hunter2@{NOBODY}/0?password=hunter2",
    "ASSAY_TRITON__URL": NOBODY,
}


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


def process(*arguments: str, **environ: str) -> Done:
    """`python -m worker …` with nothing to find: no stack, no server behind any address."""
    command = [sys.executable, "-m", "worker", *arguments]
    env = {**os.environ, **ENVIRON, **environ}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=REPO, timeout=120, check=False)
    assert "Traceback" not in done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def invoke(*arguments: str, **environ: str) -> Done:
    """The same in this process."""
    result = CliRunner().invoke(app, list(arguments), env={**ENVIRON, **environ}, prog_name="python -m worker")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_an_example_of_the_command_itself(command: list[str]) -> None:
    """Whoever asks for help can copy a line from it."""
    done = invoke(*command, "--help")
    assert done.code == 0
    after = done.stdout.partition("Examples")[2]
    assert f"python -m worker {' '.join(command)}" in after


def test_without_arguments_an_overview_with_the_next_command() -> None:
    """Exit 0, every command of the contract is named, and one to type next."""
    done = process()
    assert done.code == 0
    for name in ("run", "check", "send", "query", "replay", "stack", "demo", "bench", "schema"):
        assert f"python -m worker {name}" in done.stdout
    assert "Next: python -m worker demo" in done.stdout


def test_version() -> None:
    """One line, the version."""
    assert invoke("--version").stdout == f"{__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nonsense"], "nonsense"),
        (["schema", "nonsense"], "nonsense"),
        (["query"], "exactly one of ID, --sha256 and --file"),
        (["query", "a", "--sha256", "0" * 64], "exactly one"),
        (["query", "--sha256", "xyz"], "64 hex digits"),
        (["query", "--file", "/nowhere.jpg"], "/nowhere.jpg"),
        (["send"], "PATH"),
        (["send", "/nowhere", "/elsewhere"], "/elsewhere: no such file or folder"),
        (["replay", "--reason", "to_large"], "too_large"),
        (["replay", "--since", "yesterday"], "2026-11-21T12:00:00Z"),
        (["replay", "--limit", "0"], "limit"),
        (["check", "--config", "/nowhere.toml"], "--config /nowhere.toml"),
        (["run", "--config", "/nowhere.toml"], "--config /nowhere.toml"),
        (["run", "--processes", "0"], "processes"),
        (["demo", "/nowhere"], "/nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors_are_exit_2(arguments: list[str], named: str) -> None:
    """What was typed wrongly is named on stderr, without a traceback, before any server is asked."""
    done = invoke(*arguments)
    assert done.code == 2, done.stderr
    assert done.stdout == ""
    assert named in done.stderr


@pytest.mark.parametrize(
    "command",
    [["run"], ["check"], ["check", "--json"], ["query", "a"], ["send", "README.md"], ["replay"], ["stack", "status"]],
    ids=" ".join,
)
def test_invalid_settings_are_exit_2(command: list[str]) -> None:
    """Each problem on one line, naming the variable; all at once; secrets not shown."""
    done = invoke(*command, ASSAY_HTTP__PORT="x", ASSAY_KAFKA__GRUOP_ID="y", ASSAY_REDIS__URL="http://:hunter2@h")
    assert done.code == 2
    assert done.stdout == ""
    starts = sorted(re.split(r"[= ]", line)[0] for line in done.stderr.splitlines())
    assert starts == ["ASSAY_HTTP__PORT", "ASSAY_KAFKA__GRUOP_ID", "ASSAY_REDIS__URL"]
    assert "hunter2" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "dependency"),
    [
        (["query", "a"], "redis"),
        (["query", "a", "--json"], "redis"),
        (["send", "README.md"], "kafka"),
        (["replay", "--dry-run"], "kafka"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_dependency_that_is_not_there_is_exit_3(command: list[str], dependency: str) -> None:
    """Named, with the address that was tried, without the password in it."""
    done = invoke(*command)
    assert done.code == 3, done.stderr
    assert done.stdout == ""
    assert f"{dependency} is not there" in done.stderr
    assert NOBODY in done.stderr
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_check_tells_of_everything_and_exits_3() -> None:
    """One JSON document: each server with what was found and what to do; the policy is well."""
    done = process("check", "--json")
    assert done.code == 3, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] is False
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert findings["policy"]["ok"] is True
    assert "in force" in findings["confinement"]["detail"]
    for name, variable in (
        ("kafka", "ASSAY_KAFKA__BOOTSTRAP_SERVERS"),
        ("redis", "ASSAY_REDIS__URL"),
        ("triton", "ASSAY_TRITON__URL"),
    ):
        assert findings[name]["ok"] is False
        assert variable in findings[name]["hint"]
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["table", "json"])
def test_check_refuses_what_run_would_refuse(more: list[str], tmp_path: Path) -> None:
    """Exit 2 with each problem on its line: a broken policy, a folder that is none, an exporter that nobody has."""
    policy = tmp_path / "policy.toml"
    policy.write_text('head = "nose"\n')
    done = invoke(
        "check",
        *more,
        ASSAY_REFERENCES__SCHEMES="file,https",
        ASSAY_REFERENCES__FILE_ROOTS="relative",
        ASSAY_REFERENCES__HTTPS_HOSTS="https://host/",
        ASSAY_TRACING__ENABLED="true",
        OTEL_TRACES_EXPORTER="none-such",
    )
    assert done.code == 2, done.stderr
    assert done.stdout == ""
    starts = [re.split(r"[= ]", line)[0] for line in done.stderr.splitlines()]
    assert starts == ["ASSAY_REFERENCES__HTTPS_HOSTS", "ASSAY_REFERENCES__FILE_ROOTS", "OTEL_TRACES_EXPORTER"]
    assert invoke("check", *more, ASSAY_POLICY__PATH=str(policy)).code == 2


def test_a_wrong_policy_is_told_with_the_rest(tmp_path: Path) -> None:
    """The policy file is a setting too: its problems come at once with the others."""
    done = invoke("query", "a", ASSAY_POLICY__PATH=str(tmp_path / "none.toml"), ASSAY_HTTP__PORT="x")
    assert done.code == 2
    starts = [problem.split("=")[0] for problem in done.stderr.splitlines()]
    assert starts == ["ASSAY_HTTP__PORT", "ASSAY_POLICY__PATH"]


def test_check_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as a table: what was found, and the setting to change."""
    findings = [
        Finding("kafka", ok=True, detail="3 topics"),
        Finding("triton", ok=False, detail="no answer", hint="set ASSAY_TRITON__URL"),
    ]
    monkeypatch.setattr("worker.check.check", lambda _settings: iter(findings))
    done = invoke("check")
    assert done.code == 3
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:]] == [["ok", "kafka"], ["no", "triton"]]
    assert "set ASSAY_TRITON__URL" in done.stdout


@pytest.mark.slow
def test_run_waits_for_dependencies_and_gives_up_with_exit_3() -> None:
    """At start it says whom it waits for; past the limit it names the setting that allows more."""
    done = process("run", ASSAY_RUN__STARTUP_TIMEOUT_S="1", ASSAY_HTTP__PORT="0", ASSAY_LOG__FORMAT="json")
    assert done.code == 3, done.stderr
    assert done.stdout == ""
    assert '"waiting_for"' in done.stderr
    assert "ASSAY_RUN__STARTUP_TIMEOUT_S" in done.stderr


class EmptyRedis(socketserver.StreamRequestHandler):
    """Enough of RESP 3 to hold nothing: HGETALL and HGET find no key, everything else is fine."""

    def handle(self) -> None:
        while header := self.rfile.readline():
            words = []
            for _ in range(int(header[1:])):
                size = int(self.rfile.readline()[1:])
                words.append(self.rfile.read(size + 2)[:-2].upper())
            answers = {b"HGETALL": b"%0\r\n", b"HGET": b"_\r\n", b"HELLO": b"%1\r\n+proto\r\n:3\r\n"}
            self.wfile.write(answers.get(words[0], b"+OK\r\n"))


@pytest.fixture
def empty_redis() -> Iterator[str]:
    """The URL of a Redis without keys."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), EmptyRedis) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"redis://127.0.0.1:{server.server_address[1]}/0"
        server.shutdown()
        thread.join(10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "question", [["unknown"], ["unknown", "--json"], ["--sha256", "0" * 64], ["--file", "README.md"]], ids=" ".join
)
def test_no_verdict_is_exit_4(question: list[str], empty_redis: str) -> None:
    """Nothing on stdout, one line on stderr."""
    done = invoke("query", *question, ASSAY_REDIS__URL=empty_redis)
    assert done.code == 4, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("no verdict on ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["verdict", "reference", "asyncapi"])
def test_schema_prints_json_and_nothing_else(name: str) -> None:
    """The printed document is the one in docs/."""
    done = invoke("schema", name)
    assert done.code == 0
    place = "asyncapi.json" if name == "asyncapi" else f"schemas/{name}.json"
    assert done.stdout == (REPO / "docs" / place).read_text(encoding="utf-8")
    assert json.loads(invoke("schema").stdout)[name] == json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["schema", "verdict"], 0), (["schema", "nonsense"], 2), (["query"], 2), (["query", "a"], 3)],
    ids=str,
)
def test_a_process_ends_with_the_same_codes(arguments: list[str], code: int) -> None:
    """What the app decides reaches the shell; exit 4 likewise, below."""
    assert process(*arguments).code == code


@pytest.mark.slow
def test_a_process_ends_with_4_where_there_is_no_verdict(empty_redis: str) -> None:
    """And prints nothing on stdout."""
    done = process("query", "unknown", ASSAY_REDIS__URL=empty_redis)
    assert (done.code, done.stdout) == (4, "")


def test_schema_needs_no_valid_settings() -> None:
    """It describes the contract, whatever the environment."""
    assert invoke("schema", "verdict", ASSAY_HTTP__PORT="x").code == 0


def test_stack_status_is_json_also_when_nothing_runs(tmp_path: Path) -> None:
    """Every service is named, null where it does not run; no variables then."""
    done = invoke("stack", "status", "--json", ASSAY_STACK__DIR=str(tmp_path / "none"))
    assert done.code == 0
    assert json.loads(done.stdout) == {"services": {"kafka": None, "redis": None, "triton": None}, "env": {}}
    assert invoke("stack", "status", "--export", ASSAY_STACK__DIR=str(tmp_path / "none")).stdout == ""


def test_stack_down_where_nothing_runs(tmp_path: Path) -> None:
    """Stopping what does not run is done."""
    assert invoke("stack", "down", ASSAY_STACK__DIR=str(tmp_path / "none")).code == 0


@pytest.mark.slow
def test_the_worker_needs_no_torch() -> None:
    """Neither importing the command line nor the whole pipeline loads torch or scikit-learn."""
    script = (
        "import sys, worker.cli, worker.pipeline; "
        "print(sorted({'torch', 'sklearn', 'timm', 'pickle5'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPO, check=False)
    assert done.stdout == "[]\n", done.stderr


def test_sigterm_during_the_imports_is_heard() -> None:
    """A worker that is told to stop while it still loads its libraries ends with 0 instead of being killed later."""
    script = """
import importlib.abc, os, signal, sys
import worker.cli

class Stop(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "worker.pipeline":
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Stop())
sys.argv = ["worker", "run"]
worker.cli.app()
"""
    env = os.environ | {
        "ASSAY_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "ASSAY_REDIS__URL": "redis://127.0.0.1:1",
        "ASSAY_TRITON__URL": "127.0.0.1:1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=REPO, env=env, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
