"""The Grafana dashboards as code; the JSON that Grafana loads lies in the chart.

Each panel (overview.py, model.py) is a title, what it asks in PromQL, and its meaning. Datasource, namespace and
release are variables, so that one file serves every cluster. Run after a change:

    python -m deploy.grafana.build [--check]
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deploy.grafana.model import MODEL
from deploy.grafana.overview import OVERVIEW
from deploy.grafana.panels import Panel
from worker import generated

OUT = Path(__file__).parents[1] / "helm" / "assay" / "files" / "dashboards"
MODULE = "deploy.grafana.build"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
HEIGHT, STAT_HEIGHT = 8, 4


def dashboard(uid: str, title: str, rows: dict[str, list[Panel]]) -> dict[str, Any]:
    """The JSON model of a dashboard, 24 columns wide."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row, members in rows.items():
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": row,
                "collapsed": False,
                "panels": [],
                "gridPos": {"h": 1, "w": 24, "x": 0, "y": y},
            }
        )
        y += 1
        x = height = 0
        for panel in members:
            if x + panel.width > 24:
                x, y = 0, y + height
            height = STAT_HEIGHT if panel.kind == "stat" else HEIGHT
            panels.append(_panel(panel, len(panels) + 1) | {"gridPos": {"h": height, "w": panel.width, "x": x, "y": y}})
            x += panel.width
        y += height
    return {
        "uid": uid,
        "title": title,
        "tags": ["assay"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": VARIABLES},
        "annotations": {"list": []},
        "panels": panels,
    }


def _panel(panel: Panel, number: int) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(65 + index),
            "expr": expr,
            "legendFormat": legend or "__auto",
            "datasource": DATASOURCE,
            "editorMode": "code",
            "range": True,
        }
        | ({"format": "heatmap"} if panel.kind == "heatmap" else {})
        for index, (expr, legend) in enumerate(panel.queries)
    ]
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.bad_from is not None:
        steps.append({"color": "red", "value": panel.bad_from})
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    options: dict[str, Any] = {}
    if panel.kind == "timeseries":
        defaults |= {
            "min": 0,
            "custom": {
                "fillOpacity": 20,
                "showPoints": "never",
                "stacking": {"mode": "normal" if panel.stacked else "none"},
            },
        }
        options = {
            "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["mean", "lastNotNull"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    elif panel.kind == "stat":
        options = {"colorMode": "value", "graphMode": "area", "reduceOptions": {"calcs": ["lastNotNull"]}}
    else:
        options = {"calculate": False, "yAxis": {"unit": panel.unit}, "color": {"mode": "scheme", "scheme": "Viridis"}}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.meaning,
        "datasource": DATASOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
    }


def _datasource_variable() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source", "hide": 0}


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "label": label,
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        # Also where nothing sets the label: outside Kubernetes.
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


VARIABLES = [
    _datasource_variable(),
    _variable("namespace", "Namespace", "label_values(assay_build_info, namespace)"),
    _variable("job", "Release", 'label_values(assay_build_info{namespace=~"$namespace"}, job)'),
]
DASHBOARDS = {
    "overview": ("assay-overview", "Assay: overview", OVERVIEW),
    "model": ("assay-model", "Assay: model", MODEL),
}


def files() -> dict[Path, str]:
    """Path -> content of every dashboard."""
    return {
        OUT / f"assay-{name}.json": json.dumps(dashboard(uid, title, rows), indent=1, ensure_ascii=False) + "\n"
        for name, (uid, title, rows) in DASHBOARDS.items()
    }


if __name__ == "__main__":
    generated.main(MODULE, files())
