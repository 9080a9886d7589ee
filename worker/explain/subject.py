"""Whose score a map explains: `code`, or a detector beside it; and the served model that is asked for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from worker.clients.triton import InferenceFailed, Triton
from worker.contract import Decision, Scores, Verdict
from worker.crop import Pixels, View
from worker.detectors import Description
from worker.errors import Unavailable
from worker.explain import occlusion
from worker.explain.margins import Margin
from worker.settings import Settings, TritonSettings

CODE = "code"
# A detector beside `code` may cost ten times as much an image: half as many questions, and the map is as quick.
_OVERLAP = 0.25


@dataclass(frozen=True, slots=True)
class Subject:
    """A head of a detector; an empty one is the first that the server names."""

    detector: str
    head: str

    @classmethod
    def of(cls, fact: str) -> Subject:
        """From the name of a score in rules: `scores.linear`, `detectors.clip.linear`."""
        owner, head = fact.rsplit(".", 1)
        return cls(CODE if owner == "scores" else owner.removeprefix("detectors."), head)


def deciding(found: list[Margin], decision: Decision, detector: str | None = None) -> Subject:
    """Of the heads whose own change would turn the decision the one that speaks most for it, of a review the nearest
    to another decision; of `detector` alone where it is given. Where no head would, the first of that detector, of
    `code` without one.
    """
    wanted = [(Subject.of(one.fact), one) for one in found]
    wanted = [(about, one) for about, one in wanted if detector in (None, about.detector)]

    def far(one: Margin) -> float:
        """The least is the one."""
        if decision == "review":
            return abs((one.turns_at or 0.0) - one.value)
        return one.value if decision == "real" else -one.value

    turning = [(far(one), at) for at, (_, one) in enumerate(wanted) if one.turns_at is not None]
    if turning:
        return wanted[min(turning)[1]][0]
    return wanted[0][0] if wanted else Subject(detector or CODE, "")


def version_that_judged(verdict: Verdict, about: Subject) -> str | None:
    """None where that detector was not asked."""
    if about.detector == CODE:
        return verdict.model.version
    asked = verdict.detectors.get(about.detector)
    return asked.version if asked else None


@dataclass(frozen=True, slots=True)
class Served:
    """A model that answers, and what it wants to see."""

    about: Subject
    version: str
    view: View
    score: occlusion.Score
    batch_items: int = occlusion.BATCH
    overlap: float = occlusion.OVERLAP

    def attribute(self, pixels: Pixels) -> occlusion.Attribution:
        """The map over what it sees, uint8 [H, W, 3]. Raises Unavailable, InferenceFailed."""
        return occlusion.attribute(pixels, self.score, overlap=self.overlap, batch_items=self.batch_items)


@contextmanager
def served(settings: Settings, about: Subject) -> Iterator[Served]:
    """The model of `about` on the server. Raises Unavailable; InferenceFailed where it has no such head."""
    if about.detector == CODE:
        with _client(settings.triton, occlusion.BATCH) as triton:
            heads = tuple(Scores.model_fields)
            chosen, column = _column(about, heads)
            yield Served(chosen, triton.model_version(), View(), lambda batch: triton.infer(batch).scores[:, column])
        return
    with _client(settings.detector_triton(about.detector), 1) as triton:
        try:
            found = Description.of(triton.configuration())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Unavailable(f"detector {about.detector}", f"its configuration cannot be used: {error}") from error
    items = min(found.batch_max_items, occlusion.BATCH)
    height, width = found.view.size
    chosen, column = _column(about, found.heads)
    with _client(settings.detector_triton(about.detector), items, height * width * 3) as triton:
        score: Callable[[Pixels], occlusion.Answers] = lambda batch: triton.score(batch, len(found.heads))[:, column]  # noqa: E731
        yield Served(chosen, found.version, found.view, score, items, _OVERLAP)


def _column(about: Subject, heads: tuple[str, ...]) -> tuple[Subject, int]:
    chosen = replace(about, head=about.head or heads[0])
    if chosen.head not in heads:
        raise InferenceFailed(f"{about.detector} has no head {chosen.head!r} now: it has {', '.join(heads)}")
    return chosen, heads.index(chosen.head)


@contextmanager
def _client(settings: TritonSettings, items: int, row_bytes: int | None = None) -> Iterator[Triton]:
    own = settings.model_copy(update={"shared_memory": "off"})
    triton = Triton(own, items) if row_bytes is None else Triton(own, items, row_bytes=row_bytes)
    try:
        yield triton
    finally:
        triton.close()
