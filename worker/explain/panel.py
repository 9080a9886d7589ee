"""An explanation on a terminal."""

from __future__ import annotations

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from worker.evidence import Evidence, Neighbour
from worker.explain.margins import Margin
from worker.explain.report import Explanation
from worker.terminal import COLOURS
from worker.text import escape


def panel(explanation: Explanation) -> Panel:
    """All of it, the decision first."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, lines in rows(explanation):
        style = COLOURS[explanation.decision] if name == "decision" else ""
        table.add_row(name, Text("\n".join(escape(line) for line in lines), style=style))
    return Panel(table, title=Text(escape(explanation.image_id)), expand=False)


def rows(explanation: Explanation) -> list[tuple[str, list[str]]]:
    """(name, lines) of all that is said, for a terminal and a page alike."""
    timings = ", ".join(f"{name} {ms:.1f} ms" for name, ms in explanation.verdict_timings_ms.items() if ms is not None)
    found: list[tuple[str, list[str]]] = [
        ("decision", [explanation.decision]),
        ("because", explanation.reasons),
        ("labels", explanation.labels),
        ("policy", [f"{explanation.policy.name} {explanation.policy.version}"]),
        ("scores", [_margin_line(one) for one in explanation.margins]),
        ("it would be", explanation.changes),
        ("evidence", evidence_lines(explanation.evidence)),
        ("nearest", _nearest_lines(explanation.evidence)),
        ("map", _map_lines(explanation)),
        ("timings", [timings]),
        ("missing", explanation.missing),
    ]
    return [(name, lines) for name, lines in found if lines]


def _margin_line(one: Margin) -> str:
    if one.turns_at is None:
        return f"{one.fact} {one.value:.4f}: decides nothing here by itself"
    return f"{one.fact} {one.value:.4f}: {one.into} from {one.turns_at:g}, {abs(one.turns_at - one.value):.4f} away"


def evidence_lines(evidence: Evidence) -> list[str]:
    """What the file says, a line for each kind."""
    c2pa, metadata = evidence.c2pa, evidence.metadata
    lines = [f"declared: {evidence.declared}" if evidence.declared else "the file declares nothing that counts"]
    if c2pa.state:
        said = [f"signed by {c2pa.issuer}" if c2pa.issuer else "", c2pa.claim_generator or "", c2pa.source_type or ""]
        lines.append(f"C2PA manifest, {c2pa.state}: {', '.join(part for part in said if part)}")
    lines += [
        f"{name}: {value}"
        for name, value in (
            ("generator's own fields", metadata.tool),
            ("source type in XMP", metadata.source_type),
            ("AIGC label", metadata.aigc),
            ("watermark", evidence.watermark),
        )
        if value
    ]
    return lines


def _nearest_lines(evidence: Evidence) -> list[str]:
    return [
        line
        for line in (_neighbour_line("real", evidence.nearest.real), _neighbour_line("fake", evidence.nearest.fake))
        if line
    ]


def _neighbour_line(side: str, one: Neighbour) -> str:
    return (
        ""
        if one.distance is None
        else f"{side}: {one.label or 'of no known group'}, cosine distance {one.distance:.4f}"
    )


def _map_lines(explanation: Explanation) -> list[str]:
    found = explanation.attribution
    if found is None:
        return []
    part = found.strongest
    side = "real" if explanation.decision == "real" else "fake"
    largest = max((abs(value) for row in found.grid for value in row), default=0.0) or 1.0
    marks = "·░▒▓█"
    drawing = [
        "".join(marks[min(4, int(5 * max(0.0, value if side == "fake" else -value) / largest))] * 2 for value in row)
        for row in found.grid
    ]
    where = f"x {part.left}-{part.right}, y {part.top}-{part.bottom} of {found.width} x {found.height}"
    return [f"{found.detector}: {found.head} {found.score:.4f}; most for {side}: {where}", *drawing]
