"""The shadow stage: what is compared carries the version that gave it."""

from __future__ import annotations

from typing import Any

from tests.twins import VERSION, Workbench, judged, record, settings, tensor, wait_for
from worker.stages.shadow import Shadow

NEWER = "ba9876543210"


class Comparisons:
    """Keeps what would go into the stream."""

    def __init__(self) -> None:
        self.kept: list[dict[str, str]] = []

    def add_comparisons(self, _model: str, comparisons: list[dict[str, str]], _most: int) -> None:
        self.kept += comparisons


def test_a_comparison_carries_the_version_that_gave_its_scores() -> None:
    """When the shadow is replaced during a call, the call is made again: the scores and the version named are the new
    one's.
    """
    bench, store = Workbench(settings(shadow={"share": 1.0})), Comparisons()
    clients: dict[str, Any] = {"triton": bench.triton, "store": store}
    shadow = Shadow(bench.settings.shadow, bench.tools, bench.policies, **clients)
    ended = [judged(encoded, 0.5) for encoded in bench.identified(record(0), record(1))]
    with bench.driving(shadow):
        shadow.offer(ended, tensor(10, 20))
        wait_for(lambda: len(store.kept) == 2, "the first batch is compared")
        bench.triton.reload_to = NEWER
        calls = len(bench.triton.batches)
        shadow.offer(ended, tensor(51, 255))
        wait_for(lambda: len(store.kept) == 4, "the second batch is compared")
    assert [kept["shadow_model"] for kept in store.kept] == [VERSION, VERSION, NEWER, NEWER]
    assert bench.triton.batches[calls:] == [[51, 255], [51, 255]]
    assert [kept["shadow_score_linear"] for kept in store.kept[2:]] == ["0.2", "1.0"]
