"""What a person sees of images that were sent: progress, a line per image, a summary; and a panel for one verdict."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from worker.check import Finding
from worker.clients.kafka_producer import Producer
from worker.contract import HEADS
from worker.send import Result, Sent, Source, Waiter, send
from worker.settings import Settings
from worker.terminal import COLOURS, err, out, print_json
from worker.text import escape

ID_WIDTH = 44


def send_and_show(settings: Settings, sources: Sequence[Source], *, wait_s: float | None, as_json: bool) -> bool:
    """Publish `sources` and show their verdicts until none has come for `wait_s` (None: do not wait for them).

    False where a file could not be sent. Raises Unavailable.
    """
    with contextlib.ExitStack() as stack:
        producer = stack.enter_context(contextlib.closing(Producer(settings.kafka)))
        waiter = stack.enter_context(contextlib.closing(Waiter(settings))) if wait_s is not None else None
        started = time.monotonic()
        sent = _send(settings, producer, sources, hidden=as_json, as_json=as_json and waiter is None)
        count = sum(one.error is None for one in sent)
        if not as_json:
            took_s = time.monotonic() - started
            err.say(f"{count} images sent to {settings.kafka.incoming_topic} in {took_s:.1f} s")
        if waiter is not None and wait_s is not None:
            results(waiter.results(sent, timeout_s=wait_s), total=count, as_json=as_json)
    return count == len(sent)


def _send(
    settings: Settings, producer: Producer, sources: Sequence[Source], *, hidden: bool, as_json: bool
) -> list[Sent]:
    columns = (TextColumn("sending"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    sent: list[Sent] = []
    with Progress(*columns, console=err, transient=True, disable=hidden or not err.is_terminal) as progress:
        for one in progress.track(send(settings.kafka, producer, sources), total=len(sources)):
            sent.append(one)
            if one.error:
                err.say(f"{one.path}: not sent: {one.error}")
            elif as_json:
                print_json(json.dumps(asdict(one)))
    return sent


def results(found: Iterable[Result], *, total: int, as_json: bool) -> list[Result]:
    """Print each result as it arrives, then the counts, the rate and the latencies. Returns them."""
    started = time.monotonic()
    seen: list[Result] = []
    for result in found:
        seen.append(result)
        if as_json:
            print_json(_json(result))
        else:
            if len(seen) == 1:
                out.print(_heading())
            out.print(_line(result))
    if not as_json and seen:
        out.print(summary(seen, total, time.monotonic() - started))
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
    name = escape(result.image_id)
    name = name if len(name) <= ID_WIDTH else "…" + name[-ID_WIDTH + 1 :]
    line = Text(f"{name:{ID_WIDTH}}  ")
    verdict = result.verdict
    if verdict is None:
        line.append(f"{'rejected':8}", style=COLOURS["rejected"])
        return line.append(f"  {result.reject_reason}: {escape(result.reject_detail or '')}")
    line.append(f"{verdict.decision:8}", style=COLOURS[verdict.decision])
    for head in HEADS:
        line.append(f"  {getattr(verdict.scores, head):6.3f}")
    line.append(f"  {verdict.timings_ms.total:8.1f}{'  cache' if verdict.source == 'cache' else ''}")
    return line.append(f"  {others}" if (others := _of_detectors(verdict.model_dump()["detectors"])) else "")


def _of_detectors(found: Mapping[str, Any]) -> str:
    """`clip.linear 0.931`, of each detector that was asked."""
    scores = [(f"{name}.{head}", score) for name, said in found.items() for head, score in said["scores"].items()]
    return "  ".join(f"{name} {score:.3f}" for name, score in scores)


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
        *((("detectors", others),) if (others := _of_detectors(verdict.get("detectors") or {})) else ()),
        ("model", f"{model['name']} {model['version']}"),
        ("policy", f"{policy['name']} {policy['version']}"),
        ("image", f"{image['format']}, {image['width']} x {image['height']} px, {image['bytes']} bytes"),
        ("sha256", verdict["sha256"]),
        ("decided", f"{verdict['decided_at']}, from {verdict['source']}"),
        ("verdict id", verdict["verdict_id"]),
    )
    for name, value in rows:  # Text: a bracket in a name must not be taken for markup
        table.add_row(name, Text(escape(value), style=COLOURS.get(value, "") if name == "decision" else ""))
    return Panel(table, title=Text(escape(verdict["image_id"])), expand=False)


def findings_table(findings: Iterable[Finding]) -> Table:
    """What `check` found, a row each."""
    table = Table("", "what", "found", "what to do", box=None, pad_edge=False)
    for finding in findings:
        mark = Text("ok", style="green") if finding.ok else Text("no", style="red")
        table.add_row(mark, *(Text(text) for text in (finding.name, finding.detail, finding.hint)))
    return table
