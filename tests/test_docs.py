"""The generated pages are current, complete, and the check notices when they are not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from worker import docs, generated
from worker.errors import RejectReason
from worker.settings import fields, variable
from worker.telemetry.console_metrics import CONSOLE_DOCS
from worker.telemetry.metrics import metric_docs

REPO = Path(__file__).resolve().parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker.docs", *arguments], capture_output=True, text=True, cwd=REPO, check=False
    )


def test_the_pages_in_the_repository_are_current() -> None:
    """Whoever changes a setting, a metric or a model runs `make docs` too."""
    done = run("--check")
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


def test_the_check_names_what_is_stale(tmp_path: Path) -> None:
    """A page that was changed by hand and one that is missing are both named; writing mends them."""
    pages = docs.files(tmp_path)
    program = (
        "from pathlib import Path; from worker import docs, generated; "
        f"generated.main('worker.docs', docs.files(Path({str(tmp_path)!r})))"
    )

    def run_there(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=False)

    assert run_there().stdout.splitlines() == [f"wrote {path}" for path in pages]
    (tmp_path / "settings.md").write_text("# Settings\n")
    (tmp_path / "schemas" / "verdict.json").unlink()
    done = run_there("--check")
    assert done.returncode == 1
    assert sorted(re.findall(r"(\S+) is not current; run: python -m worker.docs", done.stderr)) == [
        f"{tmp_path}/schemas/verdict.json",
        f"{tmp_path}/settings.md",
    ]
    assert run_there().returncode == 0
    assert generated.stale(pages) == []


@pytest.mark.parametrize("name", [variable(group, field) for group, field, _ in fields()])
def test_every_setting_is_a_row(name: str) -> None:
    """Variable, type, unit, default and meaning, none of them empty but the unit."""
    (row,) = [line for line in docs.settings_page().splitlines() if line.startswith(f"| `{name}` |")]
    cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
    assert len(cells) == 5
    assert all(cells[index] for index in (0, 1, 3, 4))


@pytest.mark.parametrize(
    ("name", "kind", "unit", "default"),
    [
        ("ASSAY_HTTP__PORT", "integer from 0 to 65535", "", "`9464`"),
        ("ASSAY_KAFKA__BOOTSTRAP_SERVERS", "list", "", "`localhost:9092`"),
        ("ASSAY_REFERENCES__SCHEMES", "list", "", "empty"),
        ("ASSAY_REDIS__URL", "text, secret", "", "`redis://localhost:6379/0`"),
        ("ASSAY_REDIS__PASSWORD", "text, secret", "", "unset"),
        ("ASSAY_REDIS__TIMEOUT_MS", "integer from 10", "ms", "`2000`"),
        ("ASSAY_REDIS__VERDICT_TTL", "integer from 0", "s", "`2592000`"),
        ("ASSAY_FLOW__LOW_WATER", "number above 0 to 1", "", "`0.5`"),
        ("ASSAY_CACHE__ENABLED", "true or false", "", "`true`"),
        ("ASSAY_LOG__FORMAT", "`auto` or `json` or `console`", "", "`auto`"),
        ("ASSAY_LIMITS__MAX_IMAGE_PIXELS", "integer from 1", "pixels", "`100000000`"),
    ],
)
def test_rows_say_what_the_code_says(name: str, kind: str, unit: str, default: str) -> None:
    """One row of each kind, in full."""
    assert f"| `{name}` | {kind} | {unit} | {default} | " in docs.settings_page()


def test_every_metric_is_a_row() -> None:
    """Name, type and meaning of all of them."""
    page = docs.metrics_page()
    for doc in [*metric_docs(), *CONSOLE_DOCS]:
        assert f"| `{doc.name}` | {doc.type} | " in page
        assert doc.meaning in page


def test_links_in_the_documents_lead_somewhere() -> None:
    """Every relative link in README, CHANGELOG, NOTICE and docs/ names a file of the repository."""
    pages = [REPO / "README.md", REPO / "CHANGELOG.md", *(REPO / "docs").glob("*.md")]
    broken = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []


def test_variables_in_the_documents_exist() -> None:
    """No page tells of a setting that is not there."""
    known = {variable(group, field) for group, field, _ in fields()}
    pages = [REPO / "README.md", *(REPO / "docs").glob("*.md")]
    for page in pages:
        named = set(re.findall(r"\bASSAY_[A-Z0-9]+__[A-Z0-9_]+[A-Z0-9]\b", page.read_text(encoding="utf-8")))
        assert {name for name in named if name not in known and name.removesuffix("_FILE") not in known} == set(), (
            page.name
        )


def test_the_readme_lists_the_reject_reasons() -> None:
    """Whoever handles rejections finds every reason in one place."""
    text = (REPO / "README.md").read_text(encoding="utf-8")
    assert [reason.value for reason in RejectReason if f"`{reason.value}`" not in text] == []
