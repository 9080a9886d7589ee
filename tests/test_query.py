"""Query: by id, by hash or by file; what is wrong with the question, and what is not there."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from tests.console.harness import verdict
from worker import query
from worker.errors import NotFound, SettingsError
from worker.settings import RedisSettings

DATA = b"the image"
SHA = hashlib.sha256(DATA).hexdigest()
DOCUMENT = verdict("a/b.jpg", DATA, None).to_json()


class StoreTwin:
    """worker.clients.redis.Store with one verdict, on `a/b.jpg`."""

    closed = 0
    judged = SHA
    document = DOCUMENT

    def __init__(self, _settings: RedisSettings) -> None:
        pass

    def latest_id(self, sha256: str) -> str | None:
        return "a/b.jpg" if sha256 == SHA else None

    def verdict(self, image_id: str) -> dict[str, str]:
        return {"json": self.document, "decision": "fake", "sha256": self.judged} if image_id == "a/b.jpg" else {}

    def close(self) -> None:
        StoreTwin.closed += 1


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> None:
    StoreTwin.closed = 0
    monkeypatch.setattr(query, "Store", StoreTwin)


def ask(image_id: str | None = None, sha256: str | None = None, file: Path | None = None) -> str:
    return query.stored_verdict(RedisSettings(), image_id=image_id, sha256=sha256, file=file)


def test_by_id_hash_and_file(tmp_path: Path) -> None:
    """All three lead to the same document; a hash may be in upper case."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(DATA)
    assert ask("a/b.jpg") == ask(sha256=SHA) == ask(sha256=SHA.upper()) == ask(file=path) == DOCUMENT
    assert StoreTwin.closed == 4


def test_an_id_judged_on_other_bytes_since_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hash only a verdict on these very bytes counts; the message says where they were seen."""
    monkeypatch.setattr(StoreTwin, "judged", "0" * 64)
    with pytest.raises(NotFound, match=r"a/b\.jpg has been judged on other bytes"):
        ask(sha256=SHA)
    assert ask("a/b.jpg") == DOCUMENT


FOREIGN = [
    "",
    "[]",
    "null",
    "{}",
    "not json",
    "[" * 100_000,
    '{"schema": "assay.verdict/1"}',
    DOCUMENT.replace('"linear":0.61', '"linear":NaN'),
    DOCUMENT.replace('"total":5.0', '"total":Infinity'),
    DOCUMENT.replace('"image":{', '"image":[],"x":{'),
    DOCUMENT.replace("a/b.jpg", "\\ud800"),
    re.sub(r'"decided_at":"....-..', '"decided_at":"2026-13', DOCUMENT),
]


@pytest.mark.parametrize("document", FOREIGN)
def test_what_somebody_else_stored_is_told_and_not_shown(monkeypatch: pytest.MonkeyPatch, document: str) -> None:
    """A value of ours that another program wrote over is no verdict, whatever it is: not found, and why."""
    monkeypatch.setattr(StoreTwin, "document", document)
    with pytest.raises(NotFound, match="not written by Assay"):
        ask("a/b.jpg")


def test_a_document_is_on_one_line_and_keeps_what_we_do_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later version's fields are shown as they are; line ends between fields are taken out."""
    later = DOCUMENT[:-1] + ',"later":1}'
    monkeypatch.setattr(StoreTwin, "document", later)
    assert ask("a/b.jpg") == later
    monkeypatch.setattr(StoreTwin, "document", json.dumps(json.loads(DOCUMENT), indent=2))
    assert ask("a/b.jpg") == DOCUMENT


@pytest.mark.parametrize("question", [{"image_id": "other"}, {"sha256": "0" * 64}])
def test_what_is_not_there(question: dict[str, str]) -> None:
    """NotFound names what was asked for, and the connection is closed."""
    with pytest.raises(NotFound, match=next(iter(question.values()))):
        ask(**question)  # type: ignore[arg-type]
    assert StoreTwin.closed == 1


def test_a_file_of_other_bytes_is_not_found(tmp_path: Path) -> None:
    """The bytes count, not the name."""
    path = tmp_path / "b.jpg"
    path.write_bytes(b"other")
    with pytest.raises(NotFound):
        ask(file=path)


@pytest.mark.parametrize(
    "question",
    [
        {},
        {"image_id": "a", "sha256": SHA},
        {"image_id": "a", "file": Path("x")},
        {"sha256": "abc"},
        {"sha256": "g" * 64},
        {"file": Path("/nowhere.jpg")},
    ],
)
def test_wrong_questions(question: dict[str, str]) -> None:
    """None or several at once, what is no hash, a file that is not there: one line each, and nothing is asked of
    Redis.
    """
    with pytest.raises(SettingsError) as caught:
        ask(**question)  # type: ignore[arg-type]
    assert len(caught.value.problems) == 1
    assert StoreTwin.closed == 0
