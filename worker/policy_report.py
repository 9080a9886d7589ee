"""What a person sees of a policy and of a back-test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from worker.policy import Policy
from worker.terminal import err


def policy_document(policy: Policy) -> dict[str, Any]:
    """For a script: name, version, what beside the file is part of it, parts, headers, calibration."""
    parts = [{"part": part, "says": says, "reads": reads} for part, says, reads in policy.form.explain()]
    calibration = policy.calibration.model_dump(exclude={"reference"}) if policy.calibration else None
    return {
        **policy.ref.model_dump(),
        "also_decides": dict(policy.also_decides),
        "parts": parts,
        "doubts": policy.form.doubts(),
        "headers": sorted(policy.headers),
        "calibration": calibration,
    }


def policy_table(policy: Policy) -> Table:
    """A line for each part, from the top as it is decided."""
    calibrated = f", calibrated with {policy.calibration.models}" if policy.calibration else ""
    table = Table("", "decides", "reads", box=None, pad_edge=False, title_justify="left")
    beside = f", with {', '.join(policy.also_decides)}" if policy.also_decides else ""
    table.title = Text(f"{policy.name} {policy.ref.version}{beside}{calibrated}")
    for part in policy.form.explain():
        table.add_row(*map(Text, part))  # a list in a rule is no markup
    return table


def comparison_tables(document: Mapping[str, Any]) -> Iterator[Table]:
    """The whole, then by format, size, source and header, then some of the changed images."""
    table = Table("", "before", "after", box=None, pad_edge=False, title_justify="left")
    names = {when: document[when] or {"name": "as decided", "version": ""} for when in ("policy", "against")}
    after, before = (f"{one['name']} {one['version']}".strip() for one in names.values())
    table.title = Text(
        f"{document['judged']} images judged, {document['changed']} changed\nbefore: {before}; after: {after}"
    )
    decisions = document["decisions"]
    for decision in ("real", "review", "fake"):
        table.add_row(decision, *(str(decisions[when].get(decision, 0)) for when in ("before", "after")))
    for name in ("precision", "recall", "false_positive_rate") if "labelled" in document else ():
        table.add_row(
            name.replace("_", " "), *(_percent(document["labelled"][when][name]) for when in ("before", "after"))
        )
    yield table
    for name, parts in document["by"].items():
        table = Table(escape(name), "judged", "changed", "from and to", box=None, pad_edge=False)
        for value, part in parts.items():
            changes = ", ".join(f"{change} {count}" for change, count in part["changes"].items())
            table.add_row(Text(value), str(part["judged"]), str(part["changed"]), changes)
        yield table
    if document["sample"]:
        table = Table("changed, for example", "before", "after", "because", box=None, pad_edge=False)
        for one in document["sample"]:
            table.add_row(Text(one["image_id"]), one["before"], one["after"], Text("; ".join(one["reasons"])))
        yield table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


@contextmanager
def counting(what: str, *, hidden: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr around a block; the block reports (done, of how many)."""
    columns = (TextColumn(what), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=hidden or not err.is_terminal) as progress:
        task = progress.add_task("")
        yield lambda done, total: progress.update(task, completed=done, total=max(total, done))
