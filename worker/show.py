"""How verdicts look on a terminal: a line per image, a panel for one, a summary at the end."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from worker.contract import HEADS
from worker.send import Result

COLOURS = {"fake": "red", "real": "green", "review": "yellow", "rejected": "magenta"}
ID_WIDTH = 44


def results(found: Iterable[Result], *, total: int, as_json: bool, console: Console) -> list[Result]:
    """Print each result as it arrives, then the counts, the rate and the latencies. Returns them."""
    started = time.monotonic()
    seen: list[Result] = []
    for result in found:
        seen.append(result)
        if as_json:
            print(_json(result), flush=True)
        else:
            if len(seen) == 1:
                console.print(_heading())
            console.print(_line(result))
    if not as_json and seen:
        console.print(summary(seen, total, time.monotonic() - started))
    return seen


def _json(result: Result) -> str:
    if result.verdict is not None:
        return result.verdict.to_json()
    return json.dumps(
        {"image_id": result.image_id, "reject_reason": result.reject_reason, "reject_detail": result.reject_detail}
    )


def _heading() -> Text:
    return Text(f"{'image':{ID_WIDTH}}  {'decision':8}  {'linear':>6}  {'knn':>6}  {'svm':>6}  {'ms':>8}", style="bold")


def _line(result: Result) -> Text:
    name = result.image_id if len(result.image_id) <= ID_WIDTH else "…" + result.image_id[-ID_WIDTH + 1 :]
    line = Text(f"{name:{ID_WIDTH}}  ")
    verdict = result.verdict
    if verdict is None:
        line.append(f"{'rejected':8}", style=COLOURS["rejected"])
        return line.append(f"  {result.reject_reason}: {result.reject_detail}")
    line.append(f"{verdict.decision:8}", style=COLOURS[verdict.decision])
    for head in HEADS:
        line.append(f"  {getattr(verdict.scores, head):6.3f}")
    return line.append(f"  {verdict.timings_ms.total:8.1f}{'  cache' if verdict.source == 'cache' else ''}")


def summary(seen: list[Result], total: int, elapsed_s: float) -> Text:
    """Counts by decision, images/s, and the 50th and 95th percentile of the time from Kafka to decision."""
    counts = Counter(result.verdict.decision if result.verdict else "rejected" for result in seen)
    line = Text(f"\n{len(seen)} of {total}: ")
    for number, (name, count) in enumerate(sorted(counts.items())):
        line.append(", " if number else "").append(f"{count} {name}", style=COLOURS[name])
    line.append(f"; {len(seen) / max(elapsed_s, 1e-9):.1f} images/s")
    times = sorted(result.verdict.timings_ms.total for result in seen if result.verdict)
    if len(times) > 1:
        percentiles = statistics.quantiles(times, n=100, method="inclusive")
        line.append(f"; latency p50 {percentiles[49]:.0f} ms, p95 {percentiles[94]:.0f} ms")
    return line


def verdict_panel(verdict: Mapping[str, Any]) -> Panel:
    """One verdict, for the one who asks why."""
    table = Table(box=None, show_header=False, pad_edge=False)
    image, model, policy = verdict["image"], verdict["model"], verdict["policy"]
    rows = (
        ("decision", verdict["decision"]),
        ("because", "; ".join(verdict["reasons"])),
        ("scores", "  ".join(f"{head} {score:.4f}" for head, score in verdict["scores"].items())),
        ("model", f"{model['name']} {model['version']}"),
        ("policy", f"{policy['name']} {policy['version']}"),
        ("image", f"{image['format']}, {image['width']} x {image['height']} px, {image['bytes']} bytes"),
        ("sha256", verdict["sha256"]),
        ("decided", f"{verdict['decided_at']}, from {verdict['source']}"),
        ("verdict id", verdict["verdict_id"]),
    )
    for name, value in rows:  # Text: a bracket in a name must not be taken for markup
        table.add_row(name, Text(value, style=COLOURS[value] if name == "decision" else ""))
    return Panel(table, title=Text(verdict["image_id"]), expand=False)
