"""What the API server or the kubelet would refuse, the chart refuses before anything is installed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.deploy import chart

pytestmark = pytest.mark.usefixtures("helm")


# What the API server or the kubelet would refuse, by the place that the message names.
HTTPS = {"schemes": ["https"], "https_hosts": ["example.org"]}
NOT_KUBERNETES: list[tuple[str, dict[str, Any]]] = [
    ("/nameOverride", {"nameOverride": "Foo_Bar"}),
    ("/fullnameOverride", {"fullnameOverride": "a.b"}),
    ("/commonLabels/team", {"commonLabels": {"team": "trust and safety"}}),
    ("/commonLabels", {"commonLabels": {"the team": "a"}}),
    *(
        ("/training/schedule", {"training": {"schedule": cron}})
        for cron in ("weekly", "0 3 * *", "61 * * * *", "0 3 * * 7", "*/0 * * * *")
    ),
    *(
        ("/monitoring/podMonitor/interval", {"monitoring": {"podMonitor": {"interval": time}}})
        for time in ("15seconds", "15", "")
    ),
    ("/monitoring/rules/disabled/0", {"monitoring": {"rules": {"disabled": ["AssayNope"]}}}),
    ("/monitoring/rules/alertLabels", {"monitoring": {"rules": {"alertLabels": {"the-team": "a"}}}}),
    *(("/gpu/resource", {"gpu": {"resource": resource}}) for resource in ("nvidia.com/ gpu", "gpu")),
    ("/worker/rollout/maxUnavailable", {"worker": {"rollout": {"maxUnavailable": "150%"}}}),
    *(
        ("/worker/image/repository", {"worker": {"image": {"repository": name}}})
        for name in ("r.example.org/assay:1", "r.example.org/Assay", "")
    ),
    ("/worker/image/tag", {"worker": {"image": {"tag": "a tag"}}}),
    ("/serviceAccount/name", {"serviceAccount": {"name": "Bad Name"}}),
    ("/secrets/existingSecret", {"secrets": {"existingSecret": "Mine", "keys": {"redis.url": "u"}}}),
    (
        "/networkPolicy",
        {
            "networkPolicy": {"referencesExcept": None},
            "settings": {"references": {"schemes": ["https"], "https_hosts": ["example.org"]}},
        },
    ),
    ("/pdb", {"pdb": {"maxUnavailable": None}}),
    ("/gpu", {"gpu": {"resource": None}}),
]


KUBERNETES: list[dict[str, Any]] = [
    {"commonLabels": {"example.org/team": "Trust_and.Safety", "empty": ""}, "serviceAccount": {"name": "a.b-c"}},
    *(
        {"training": {"schedule": cron}}
        for cron in ("@daily", "@every 12h30m", "*/5 0-6,22 1,15 JAN-mar 1-5", "0  3 ? * sun")
    ),
    {
        "monitoring": {
            "podMonitor": {"interval": "1m30s"},
            "rules": {"disabled": ["AssayScoreDrift"], "alertLabels": {"team": "Trust & Safety"}},
        }
    },
    {
        "gpu": {"resource": "nvidia.com/mig-1g.10gb"},
        "worker": {"rollout": {"maxSurge": "150%"}, "podAnnotations": {"a.b/c": "any text: {}"}},
    },
    *(
        {"worker": {"image": {"repository": name}}}
        for name in ("localhost:5000/assay/worker", "R.example.org/a__b/c-d.e", "assay")
    ),
    {"models": {"source": "pvc", "claimName": "c", "path": "/"}},
    {"models": {"source": "hub", "uri": "an-Organisation/a_repository.v1", "revision": "c0" * 20}},
]


@pytest.mark.parametrize(("place", "values"), NOT_KUBERNETES, ids=lambda part: str(part)[:90])
def test_what_kubernetes_would_refuse_is_refused(place: str, values: dict[str, Any]) -> None:
    """Values that are no name, label, schedule, duration or image for Kubernetes do not render, and the message names
    the value.
    """
    with pytest.raises(chart.Refused, match=f"at '{place}'"):
        chart.template(values=values)


@pytest.mark.parametrize("values", KUBERNETES, ids=lambda part: str(part)[:90])
def test_what_kubernetes_takes_is_accepted(values: dict[str, Any]) -> None:
    """Unusual names, labels, schedules, durations and images that Kubernetes takes render a worker."""
    assert chart.of_kind(chart.objects(chart.template(values=values)), "Deployment")
