"""Shared by the tests of operations: Prometheus, and the files that operators use."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FILES = ROOT / "helm" / "thingspace-gateway" / "files"
ALERTS = FILES / "alerts.yaml"
DASHBOARD = FILES / "dashboard.json"
PROMETHEUS = Path(os.environ.get("PROMETHEUS", ROOT / "target" / "prometheus" / "usr" / "bin"))

if not (PROMETHEUS / "promtool").exists():
    pytest.exit("Prometheus is missing: run `make prometheus`", returncode=1)


def promtool(*arguments):
    return subprocess.run([PROMETHEUS / "promtool", *map(str, arguments)], capture_output=True, text=True, timeout=300)


def expressions():
    """Yields (where, expression) for each expression of the alerts and the dashboard."""
    import yaml

    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            yield rule.get("alert") or rule["record"], rule["expr"]
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield f"{panel['title']} {target['refId']}", expanded(target["expr"])
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield f"${variable['name']}", re.fullmatch(r"label_values\((.*), \w+\)", expanded(variable["query"]["query"]))[1]


def expanded(expression):
    """Replaces the variables of Grafana as Grafana does with "All" selected."""
    expression = expression.replace("$__rate_interval", "1m").replace("$__range", "5m").replace("$__interval", "1m")
    return re.sub(r"\$(\w+)", ".*", expression)
