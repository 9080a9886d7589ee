"""What a person sees: a line per image, a summary, a panel; and what a script sees: JSON and nothing else."""

from __future__ import annotations

import json

import pytest

from tests.contents import verdicts
from tests.printed import printed
from tests.properties import given
from tests.test_send import verdict_record
from worker import show
from worker.contract import Verdict
from worker.send import Result
from worker.terminal import Terminal, out


def result(image_id: str = "a.jpg", total_ms: float = 12.0, **changes: object) -> Result:
    verdict = Verdict.model_validate_json(verdict_record(image_id, "0" * 64).value or b"")
    timings = verdict.timings_ms.model_copy(update={"total": total_ms})
    return Result(image_id, verdict.model_copy(update={"timings_ms": timings, "decision": "fake", **changes}))


REJECTION = Result("b.jpg", None, "corrupt", "cut [off]")


def shown(*results: Result, as_json: bool = False, total: int | None = None) -> str:
    found: list[Result] = []
    text = printed(lambda: found.extend(show.results(results, total=total or len(results), as_json=as_json)))
    assert found == list(results)
    return text


def test_a_line_per_image_and_a_summary() -> None:
    """Decision, three scores and time; then counts by decision."""
    text = shown(result(), result("c.jpg", source="cache"), REJECTION, total=4)
    lines = text.splitlines()
    assert lines[0].split() == ["image", "decision", "linear", "knn", "svm", "ms"]
    assert lines[1].split() == ["a.jpg", "fake", "0.900", "0.900", "0.900", "12.0"]
    assert lines[2].split()[-1] == "cache"
    assert lines[3].split() == ["b.jpg", "rejected", "corrupt:", "cut", "[off]"]
    assert lines[-1].startswith("3 of 4: 2 fake, 1 rejected; ")


def test_long_ids_keep_their_end() -> None:
    """The end of a path tells images apart."""
    line = shown(result("folder/" * 20 + "photo.jpg")).splitlines()[1]
    assert line.startswith("…")
    assert "photo.jpg  fake" in line


def test_nothing_to_show_is_nothing() -> None:
    """No heading over an empty table."""
    assert shown() == ""


def test_json_is_one_document_per_line() -> None:
    """On stdout there is JSON and nothing else, rejections included."""
    good = result()
    first, second = shown(good, REJECTION, as_json=True).splitlines()
    assert Verdict.model_validate_json(first) == good.verdict
    assert json.loads(second) == {"image_id": "b.jpg", "reject_reason": "corrupt", "reject_detail": "cut [off]"}


def test_percentiles_of_the_summary() -> None:
    """50th and 95th percentile over the verdicts, interpolated."""
    text = show.summary([result(total_ms=float(ms)) for ms in range(101)] + [REJECTION], 102, 2.0).plain
    assert "102 of 102: 101 fake, 1 rejected; 51.0 images/s; latency p50 50 ms, p95 95 ms" in text


@pytest.mark.parametrize("count", [0, 1])
def test_a_summary_of_hardly_anything(count: int) -> None:
    """One verdict has no percentiles; no division by zero."""
    assert f"{count} of 5" in show.summary([result()] * count, 5, 0.0).plain


@given(verdicts())
def test_any_verdict_can_be_shown(verdict: Verdict) -> None:
    """Ids and reasons are a producer's text: brackets in them are not markup."""
    text = printed(lambda: Terminal(width=10_000).print(show.verdict_panel(json.loads(verdict.to_json()))))
    assert verdict.decision in text
    assert str(verdict.verdict_id) in text


def test_brackets_in_reasons_are_shown() -> None:
    """What looks like markup is shown as it is."""
    document = json.loads(result(reasons=["[bold]x[/nope]"], image_id="[red]id").verdict.to_json())  # type: ignore[union-attr]
    text = printed(lambda: Terminal(width=200).print(show.verdict_panel(document)))
    assert "[bold]x[/nope]" in text
    assert "[red]id" in text


HOSTILE = "a\x1b]0;owned\x07\u202egpj\x9b2J\nforged line"


def test_a_hostile_text_stays_on_its_line() -> None:
    """Ids, reasons and details are anyone's: no sequence reaches the terminal, and no line is forged."""
    rejection = Result(HOSTILE, None, "corrupt", HOSTILE)
    for text in (
        shown(rejection),
        shown(rejection, as_json=True),
        shown(result(HOSTILE), as_json=True),
        printed(lambda: out.print(show.verdict_panel(json.loads(result(HOSTILE).verdict.to_json())))),  # type: ignore[union-attr]
    ):
        assert all(character.isprintable() or character == "\n" for character in text)
        assert not any(line.startswith("forged") for line in text.splitlines())
    assert json.loads(shown(rejection, as_json=True))["image_id"] == HOSTILE
