"""`check`: are the settings valid, the servers reachable, the topics and the model there? One line each, for a person
or a script.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from worker import __version__
from worker.clients import kafka_topics
from worker.clients.fetch import Fetcher
from worker.clients.redis import Store
from worker.clients.triton import InferenceFailed, Triton
from worker.errors import SettingsError, Unavailable
from worker.examine import confine
from worker.examine.provenance.trust import load_anchors
from worker.model import canary
from worker.policy import Policy, load_policy
from worker.settings import Settings, TritonSettings, variable
from worker.stages.panel import compile_when, try_out
from worker.stages.policy_watch import NOT_CALIBRATED, also_decides
from worker.telemetry.tracing import Tracing


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table. `hint`: what to change or run, where it is not well."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


def check(settings: Settings) -> Iterator[Finding]:
    """Look at everything, whatever fails on the way. Raises SettingsError for what `run` would refuse too."""
    _open_what_run_opens(settings)
    policy = load_policy(settings.policy.path, variable("policy", "path"), also_decides(settings))
    yield Finding("policy", ok=True, detail=f"{policy.name} {policy.ref.version}: {policy.form.summary()}")
    yield _confinement()
    yield from _kafka(settings)
    start = "or start one: make stack-up"
    yield _attempt("redis", lambda: _redis(settings), f"set {variable('redis', 'url')}, {start}")
    yield _attempt("triton", lambda: _triton(settings.triton, policy), f"set {variable('triton', 'url')}, {start}")
    if settings.shadow.share:
        hint = f"see docs/models.md, or set {variable('shadow', 'share')} to 0; verdicts do not wait for it"
        yield _attempt("shadow", lambda: _triton(settings.shadow_triton), hint)
    for name in settings.detectors.names:
        hint = f"build it with triton_models.build --detector, or take it out of {variable('detectors', 'names')}"
        yield _attempt(f"detector {name}", partial(_detector, settings, name, policy), hint)


def _confinement() -> Finding:
    """What keeps a decoder that was taken over from doing harm; what the kernel lacks is told and stops nobody."""
    refusals = confine.report()
    missing = "; ".join(f"{measure}: {reason}" for measure, reason in refusals.items())
    measures = "Landlock, system calls, limits, files"
    return Finding("confinement", ok=True, detail=f"not in force: {missing}" if missing else f"in force: {measures}")


def _open_what_run_opens(settings: Settings) -> None:
    """Right by themselves, settings may still be wrong here: a library that is not installed, a file that is no
    certificate, an exporter nobody knows. Raises SettingsError with all of it.
    """
    problems: list[str] = []
    opens: tuple[Callable[[], object], ...] = (
        lambda: load_policy(settings.policy.path, variable("policy", "path")),
        lambda: compile_when(settings),
        lambda: load_anchors(settings.evidence.c2pa_trust_path),
        lambda: Fetcher(settings.references, settings.limits).close(),
        lambda: Tracing(settings.tracing, __version__).close(),
    )
    for open_it in opens:
        try:
            open_it()
        except SettingsError as error:
            problems += error.problems
    if problems:
        raise SettingsError(problems)


def _attempt(name: str, look: Callable[[], str], hint: str) -> Finding:
    try:
        return Finding(name, ok=True, detail=look())
    except (Unavailable, InferenceFailed) as error:
        return Finding(name, ok=False, detail=error.detail if isinstance(error, Unavailable) else str(error), hint=hint)


def _kafka(settings: Settings) -> Iterator[Finding]:
    hint = f"set {variable('kafka', 'bootstrap_servers')}, or start one: make stack-up"
    try:
        found = {topic.name: topic.partitions for topic in kafka_topics.topics(settings.kafka)}
    except Unavailable as error:
        yield Finding(
            "kafka", ok=False, detail=error.detail, hint="" if variable("kafka", "") in error.detail else hint
        )
        return
    yield Finding("kafka", ok=True, detail=f"{', '.join(settings.kafka.bootstrap_servers)}, {len(found)} topics")
    wanted = ["incoming_topic", "verdicts_topic", "rejected_topic"]
    if settings.references.schemes:
        wanted.append("retry_topic")
    for field in wanted:
        name = getattr(settings.kafka, field)
        there = name in found
        detail = f"{found[name]} partitions" if there else "not there, or hidden by ACLs"
        hint = "" if there else f"create it, set {variable('kafka', field)}, or allow it (docs/deploy.md)"
        yield Finding(f"topic {name}", ok=there, detail=detail, hint=hint)


def _redis(settings: Settings) -> str:
    store = Store(settings.redis)
    try:
        store.ping()
    finally:
        store.close()
    return "answers"


def _triton(settings: TritonSettings, policy: Policy | None = None) -> str:
    triton = Triton(settings, 1)
    try:
        version = triton.model_version()
        triton.infer(canary(), timeout_s=10.0)
    finally:
        triton.close()
    detail = f"{triton.address}, model {settings.model_name} version {version} scores{_neighbours(triton.groups)}"
    if policy is not None and policy.calibration is not None and policy.is_calibrated_for(version) is False:
        detail += f"; the policy is of {policy.calibration.model_version}: {NOT_CALIBRATED}"
    return detail


def _neighbours(groups: tuple[str, ...] | None) -> str:
    if groups is None:
        return "; tells no neighbours (evidence.nearest stays null): build it again with triton_models.build"
    return f" and tells neighbours of {len(groups)} groups" if groups else " and tells neighbours, without groups"


def _detector(settings: Settings, name: str, policy: Policy) -> str:
    detail = try_out(settings, name)
    calibrated = policy.calibration.detectors.get(name) if policy.calibration is not None else None
    if calibrated is not None and f"version {calibrated} " not in detail:
        detail += f"; the policy is of {calibrated}: {NOT_CALIBRATED}"
    return detail
