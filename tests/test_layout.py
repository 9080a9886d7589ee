"""The shape of the code: imports go one way, and nothing grows beyond what is read in one sitting."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("worker", "train", "triton_models")

# From the bottom to the top. A module may import from its own layer and from those below it (docs/decisions.md);
# what is named nowhere is a command or what a command calls, and stands above the pipeline.
LAYERS = (
    ("errors", "clock", "crop", "files", "durations", "moments", "addresses", "text"),
    ("contract", "rejections", "parking", "settings", "evidence", "review"),
    ("telemetry",),
    ("admission", "queues", "offsets", "item", "inflight", "retry"),
    ("clients", "policy", "examine"),
    ("model", "detectors", "storages"),
    ("stages",),
    ("monitor", "watchdog"),
    ("pipeline",),
)
COMMANDS = len(LAYERS)
PACKAGE_ORDER = {"worker": 0, "triton_models": 1, "train": 2}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_CONSTRUCTOR_ARGUMENTS = 8
# Longer than the rule, each for a reason.
LONG_FUNCTIONS = {}


def modules() -> dict[str, Path]:
    """Every module of the three packages by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
READ = MODULES | {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / "deploy").rglob("*.py")
}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> set[str]:
    """The modules of ours that it imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    longest = {name for name in found if name in MODULES}
    return {name for name in longest if not any(other.startswith(f"{name}.") for other in longest)}


def layer(module: str) -> int:
    """Of a module of the worker."""
    part = module.split(".")[1] if "." in module else ""
    return next((rank for rank, names in enumerate(LAYERS) if part in names), COMMANDS)


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    yield from (node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef))


@pytest.mark.slow
def test_no_module_imports_itself_in_a_circle() -> None:
    """Neither inside a package nor between the packages."""
    arrows = {name: imported(path) - {name} for name, path in MODULES.items()}
    while leaves := {name for name, targets in arrows.items() if not targets}:
        arrows = {name: targets - leaves for name, targets in arrows.items() if name not in leaves}
    assert not arrows, f"in or before a circle: {sorted(arrows)}"


def test_no_arrow_runs_back_up_between_the_packages() -> None:
    """The worker stands alone; what is served builds on it; training builds on both."""
    back = [
        f"{name} -> {target}"
        for name, path in MODULES.items()
        for target in imported(path)
        if PACKAGE_ORDER[name.split(".")[0]] < PACKAGE_ORDER[target.split(".")[0]]
    ]
    assert not back


def test_no_arrow_runs_back_up_inside_the_worker() -> None:
    """cli -> pipeline -> stages -> clients, policy, examine -> bookkeeping -> contract, errors."""
    back = [
        f"{name} -> {target}"
        for name, path in MODULES.items()
        if name.startswith("worker.")
        for target in imported(path)
        if target.startswith("worker.") and layer(name) < layer(target)
    ]
    assert not back


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(READ))
def test_a_module_is_read_in_one_sitting(name: str) -> None:
    """Files, functions and constructors keep their bounds, or have a reason above."""
    path = READ[name]
    where = path.relative_to(ROOT).as_posix()
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE_LINES, f"{where} has {lines} lines"
    for function in functions(path):
        length = (function.end_lineno or 0) - function.lineno + 1
        excused = f"{where}:{function.name}" in LONG_FUNCTIONS
        assert length <= MAX_FUNCTION_LINES or excused, f"{where}: {function.name} has {length} lines"
        if function.name == "__init__":
            count = len(function.args.args) + len(function.args.kwonlyargs) - 1
            assert count <= MAX_CONSTRUCTOR_ARGUMENTS, f"{where}: a constructor of {count} arguments"
