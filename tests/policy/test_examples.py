"""Every example of docs/policy.md is what it says: policies compile, commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from worker.cli import app
from worker.policy import Policy, parse_policy

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "policy.md").read_text(encoding="utf-8")
POLICIES = re.findall(r"^```toml\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = re.findall(r"^(python -m worker policy .*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("text", POLICIES, ids=[text.split("\n")[0] for text in POLICIES])
def test_a_policy_of_the_page_compiles(text: str) -> None:
    """Each of them, with its calibration where it has one."""
    assert parse_policy(text, "docs/policy.md").ref.name


def test_the_policy_without_a_file_is_the_one_of_the_page() -> None:
    """What stands there under "Without a file" decides as the built-in policy, and has its version."""
    built_in = PAGE.split("### Without a file")[1]
    (text,) = re.findall(r"^```toml\n(.*?)^```", built_in.split("\n## ")[0], re.DOTALL | re.MULTILINE)
    assert parse_policy(text, "docs/policy.md").ref == Policy().ref


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_page_is_understood(line: str, tmp_path: Path) -> None:
    """Its options exist; a file that is not there is exit 2 and named, before anything else is looked for."""
    arguments = shlex.split(line.removeprefix("python -m worker "))
    result = CliRunner().invoke(app, [part.replace("policy.toml", str(tmp_path / "none.toml")) for part in arguments])
    assert result.exit_code == 2
    assert "No such option" not in result.output
    assert ".toml: " in result.output


def test_policy_check_says_what_each_rule_reads(tmp_path: Path) -> None:
    """The policy of the contract, as the page shows it."""
    path = tmp_path / "policy.toml"
    path.write_text(POLICIES[0])
    result = CliRunner().invoke(app, ["policy", "check", str(path)])
    assert result.exit_code == 0
    for said in ("uploads", "rule 2", "image.jpeg_quality", "with label not_applicable", "otherwise"):
        assert said in result.output


def test_the_arithmetic_of_the_page() -> None:
    """Its table of prevalence."""
    rows = re.findall(r"^\| ([\d.]+) % \| ([\d.]+) \| ([\d.]+) % \| ([\d,]+) \| (\d+) % \|$", PAGE, re.MULTILINE)
    assert len(rows) == 4
    for generated, tpr, fpr, called, wrong in rows:
        share = float(generated) / 100
        right, false = 5e6 * share * float(tpr), 5e6 * (1 - share) * float(fpr) / 100
        assert float(called.replace(",", "")) == pytest.approx(right + false, abs=1)
        assert float(wrong) == pytest.approx(100 * false / (right + false), abs=0.5)
