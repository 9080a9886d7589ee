"""Bugs planted into what asks the detector beside `code` (planted.py has the others)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.simulation.planted import plant, plant_around
from worker.item import Item
from worker.stages.consult import Consult, Referral, Score, When


@plant(When, "holds")
def asks_the_detector_about_nothing(self: Any, judgement: Any) -> bool:
    return False


@plant_around(Score, "_score")
def gives_a_detectors_score_to_the_neighbour(real: Any, self: Any, images: Any, pixels: Any, made_for: Any) -> Any:
    found = real(self, images, pixels, made_for)
    return found[1:] + found[:1]


@plant_around(Consult, "_hand_on")
def forgets_who_waits_for_a_view(real: Any, self: Any, examined: Any) -> None:
    real(self, replace(examined, good=examined.good[:1]))


@plant_around(Referral, "put")
def loses_what_needs_no_detector(real: Any, self: Any, piece: Any, stop: Any) -> None:
    real(self, [ended for ended in piece if self._when.holds(ended.outcome)] if len(piece) > 1 else piece, stop)


@plant(Item, "release")
def counts_what_a_detector_wanted_for_ever(self: Any, admission: Any) -> None:
    self.release_fetched(admission)
    admission.release(self.record.size_bytes + self.fetched_bytes, aside=self.aside)
