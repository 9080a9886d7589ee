"""What a rule hardly means is told, and is no error: a value that its fact never has."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_cli import invoke
from worker.contract import FORMATS
from worker.examine import headers
from worker.policy import load_policy, parse_policy
from worker.policy.expression import compile_expression


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('image.format == "jpg"', "column 14: image.format is never 'jpg'; did you mean 'jpeg'?"),
        ('"JPEG" != image.format', "column 8: image.format is never 'JPEG'; did you mean 'jpeg'?"),
        ('image.format in ["png", "tif"]', "column 14: image.format is never 'tif'; did you mean 'tiff'?"),
        (
            'evidence.declared == "genrated"',
            "column 19: evidence.declared is never 'genrated'; did you mean 'generated'?",
        ),
        (
            'evidence.c2pa.state == "ok"',
            "column 21: evidence.c2pa.state is never 'ok'; there are invalid, untrusted, valid",
        ),
        (
            'evidence.metadata.tool == "mid-journey"',
            "column 24: evidence.metadata.tool is never 'mid-journey'; did you mean 'midjourney'?",
        ),
        (
            'evidence.c2pa.source_type == "humanEdit"',
            "column 27: evidence.c2pa.source_type is never 'humanEdit'; did you mean 'humanEdits'?",
        ),
        ("scores.linear >= 93", "column 15: scores.linear is from 0 to 1, never 93"),
        ("-0.5 < detectors.clip.linear", "column 6: detectors.clip.linear is from 0 to 1, never -0.5"),
    ],
)
def test_what_never_holds_is_told_with_its_column(text: str, told: str) -> None:
    """The nearest value that there is, or all of them."""
    assert compile_expression(text).doubts == (told,)


@pytest.mark.parametrize(
    "text",
    [
        'image.format == "jpeg" && scores.linear >= 0.5 && scores.linear <= 1.0',
        'image.format in ["png", "webp"] && evidence.watermark == "sdxl"',
        'evidence.metadata.tool == "comfyui" || evidence.metadata.tool == null',
        'evidence.metadata.source_type == "compositeCapture" || evidence.metadata.source_type == "somethingElse"',
        'evidence.c2pa.issuer == "anybody" && headers.format == "jpg"',
        "image.width > 4000 && detectors.exists(name, name == 'clip')",
    ],
)
def test_what_may_hold_is_not_doubted(text: str) -> None:
    assert compile_expression(text).doubts == ()


def test_policy_check_says_them_and_ends_well(tmp_path: Path) -> None:
    """With file and rule, beside the table and in the JSON."""
    file = tmp_path / "policy.toml"
    file.write_text(
        "[[rules]]\nwhen = 'true'\ndecision = 'real'\n[[rules]]\nwhen = 'image.format == \"jpg\"'\ndecision = 'fake'"
    )
    line = "rule 2, column 14: image.format is never 'jpg'; did you mean 'jpeg'?"
    done = invoke("policy", "check", str(file))
    assert (done.code, done.stderr.strip()) == (0, f"{file}: {line}")
    assert line in invoke("policy", "check", str(file), "--json").stdout
    assert parse_policy("fake_from = 0.7\nreal_below = 0.2", "test").form.doubts() == []


def test_a_byte_order_mark_is_no_part_of_a_policy(tmp_path: Path) -> None:
    """Some editors write one."""
    file = tmp_path / "policy.toml"
    file.write_text("\ufefffake_from = 0.7\nreal_below = 0.2", encoding="utf-8")
    assert load_policy(file).form.meaning()["fake_from"] == 0.7


def test_the_formats_are_those_that_are_read() -> None:
    """The list is kept apart from the readers: a worker's own process loads no decoder."""
    assert set(FORMATS) == set(headers._READERS)
