"""What SECURITY.md promises of every module: no code from data, and no secret shown."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker.errors import SettingsError
from worker.settings.loading import load
from worker.settings.schema import fields, is_secret, variable
from worker.telemetry import logs

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "worker").rglob("*.py"))
# Where bytes become objects or text becomes code.
FORBIDDEN_IMPORTS = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "runpy",
    "code",
    "codeop",
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
FORBIDDEN_ATTRIBUTES = {("os", "system"), ("os", "popen"), ("yaml", "load"), ("torch", "load"), ("importlib", "reload")}
# Decoders of the extra, by constant names.
LOADS_MODULES = {"worker/examine/headers.py"}
SECRETS = [(group, name) for group, name, info in fields() if is_secret(info)]
NO_URL = [secret for secret in SECRETS if secret != ("redis", "url")]


def offences(tree: ast.AST, name: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"imports {found}" for found in names if found.split(".")[0] in FORBIDDEN_IMPORTS)
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id in FORBIDDEN_CALLS:
            yield f"calls {called.id}"
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
            whole = (called.value.id, called.attr)
            yield from ([f"calls {'.'.join(whole)}"] if whole in FORBIDDEN_ATTRIBUTES else [])
        last = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        if last == "import_module" and name not in LOADS_MODULES:
            yield "loads modules by name"
        for keyword in node.keywords:
            if keyword.arg in ("shell", "allow_pickle") and getattr(keyword.value, "value", True):
                yield f"{keyword.arg}=True"


@pytest.mark.slow
@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_becomes_code_at_run_time(path: Path) -> None:
    """No module unpickles, evaluates, starts a shell or loads a module by a name from data."""
    assert list(offences(ast.parse(path.read_text("utf-8")), str(path.relative_to(ROOT)))) == []


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "from joblib import load",
        "eval(text)",
        "exec(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "numpy.load(path, allow_pickle=True)",
        "importlib.import_module(name)",
        "yaml.load(text)",
    ],
)
def test_the_search_finds_what_is_planted(planted: str) -> None:
    """Each kind of it is found where it is."""
    assert list(offences(ast.parse(planted), "worker/x.py"))


def shown(chosen: dict[str, str], secret: str) -> str:
    """Everything that a person or a machine might see of these settings."""
    loaded = load(None, chosen)
    texts = [repr(loaded), str(loaded), loaded.model_dump_json(), json.dumps(loaded.model_dump(), default=str)]
    try:
        load(None, {**chosen, "ASSAY_HTTP__PORT": "no port", "ASSAY_KAFKA__NO_SUCH_FIELD": "x"})
    except SettingsError as error:
        texts += [str(error), repr(error), *error.problems]
    url = f"redis://user:{quote(secret, safe='')}@host:6379/0"
    event = {"event": f"lost {url}", "password": secret, "nested": {"token": secret, "url": url}, "settings": loaded}
    texts.append(logs._json(None, "info", logs._mask_event(None, "info", event)))
    return "\n".join(texts)


# Begun so that none is part of a setting's name.
secrets = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zs")), min_size=9).map(
    ("Zq7" * 10).__add__
)


@pytest.mark.parametrize(("group", "name"), NO_URL)
@settings(max_examples=25, deadline=None)
@given(secret=secrets)
@example(secret="p@ss:w/rd?#%[]{}Zq7Zq7Zq7Zq7Zq7Zq7Zq7")
@example(secret="'\"\\n$(id)`;--Zq7Zq7Zq7Zq7Zq7Zq7Zq7")
def test_no_secret_is_shown_whatever_its_form(group: str, name: str, secret: str) -> None:
    """Neither settings nor problems nor log lines hold a secret's text, in whichever setting it is."""
    chosen = {variable(group, name): secret}
    if (group, name) == ("redis", "sentinel_password"):
        chosen[variable("redis", "url")] = "redis://host:6379/0"
    text = shown(chosen, secret)
    assert secret not in text and quote(secret, safe="") not in text
    assert json.dumps(secret)[1:-1] not in text and repr(secret)[1:-1] not in text


def test_processes_are_started_without_secrets_in_their_arguments() -> None:
    """What a command leaves in the list of processes: no argument holds a secret that the environment has."""
    chosen = {variable(group, name): "hunter2" * 5 for group, name in NO_URL}
    script = (
        "import subprocess, sys\n"
        "started = []\n"
        "class Started:\n"
        "    pid = returncode = 0\n"
        "    def __init__(self, arguments, *_, **__): started.append(arguments)\n"
        "    def wait(self, *_): return 0\n"
        "    def poll(self): return 0\n"
        "from worker import processes\n"
        "from worker.settings.loading import load\n"
        "subprocess.Popen = Started\n"
        "processes._start(load(), None, 1)\n"
        "print(started)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, **chosen},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "'worker', 'run'" in done.stdout and "hunter2" not in done.stdout + done.stderr


def test_children_get_none_of_the_secrets() -> None:
    """The environment that decoding processes are started with has none of the settings."""
    from worker.examine.launch import environment

    chosen = {variable(group, name): "hunter2" for group, name in SECRETS}
    others = {"AWS_SECRET_ACCESS_KEY": "hunter2", "KUBERNETES_SERVICE_HOST": "hunter2", "HTTPS_PROXY": "hunter2"}
    assert "hunter2" not in str(environment({**chosen, **others, "PATH": "/bin"}))


def test_the_page_names_what_check_reports() -> None:
    """SECURITY.md names every measure of confinement and the line of `check`."""
    page = (ROOT / "SECURITY.md").read_text("utf-8")
    for word in ("seccomp", "Landlock", "no_new_privs", "rlimits", "oom_score_adj", "*confinement*", "make fuzz"):
        assert word in page
