"""The dashboard is valid, and its expressions and those of the alerts use only metrics that are documented."""

import json
import re

import yaml
from conftest import DASHBOARD, ROOT, expressions, promtool

BOARD = json.loads(DASHBOARD.read_text())
# The labels that Prometheus or the rules add.
ADDED = {"cluster", "namespace", "job", "instance", "le", "alertname", "alertstate"}
FUNCTIONS = re.compile(
    r"\b(?:and|or|unless|offset|\d+[smhd]|on|by|without|sum|min|max|avg|count|group|topk|absent|rate|increase|avg_over_time|min_over_time|last_over_time|histogram_quantile|vector)\b"
)


def documented() -> dict[str, set[str]]:
    """The labels of each series of docs/metrics.md, by its name in the text formats."""
    found = {}
    row = re.compile(r"^\| `[a-z._]+`<br>`(\w+)` \| ([\w -]+) \| [^|]* \| ([^|]*) \|", re.MULTILINE)
    for name, kind, attributes in row.findall((ROOT / "docs" / "metrics.md").read_text()):
        labels = {attribute.replace(".", "_") for attribute in re.findall(r"`([a-z._]+)`", attributes)}
        for end in ("_bucket", "_sum", "_count") if kind == "histogram" else ("",):
            found[name + end] = labels
    assert len(found) > 50, "docs/metrics.md has other tables now"
    return found


def recorded() -> set[str]:
    groups = yaml.safe_load((ROOT / "helm" / "thingspace-gateway" / "files" / "alerts.yaml").read_text())["groups"]
    return {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}


def test_every_expression_parses(tmp_path):
    rules = [{"record": f"expression_{number}", "expr": expression} for number, (_, expression) in enumerate(expressions())]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": rules}]}))
    told = promtool("check", "rules", file)
    assert told.returncode == 0, told.stdout + told.stderr


def test_every_expression_uses_documented_metrics_and_labels():
    known = {**documented(), "up": set(), "ALERTS": set(), **{name: set() for name in recorded()}}
    for where, expression in expressions():
        text = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
        names = re.findall(r"\b(?:thingspace_gateway[\w:]*|rpc_\w+_seconds\w*|http_client_\w+_seconds\w*|process_\w+|up|ALERTS)\b", text)
        assert names, f"{where}: no metric in {expression}"
        labels = set().union(*(known.get(name, set()) for name in names))
        for name in names:
            assert name in known, f"{where}: docs/metrics.md has no {name}"
        # What remains are labels.
        rest = FUNCTIONS.sub(" ", re.sub(r"\[\w+\]", " ", text))
        for word in set(re.findall(r"[a-zA-Z_]\w*", rest)) - set(names) - set(re.split(r"[:]", ":".join(names))):
            assert word in labels | ADDED, f"{where}: no metric in it has the label {word}"


def test_panels_have_unique_ids_and_do_not_overlap():
    panels = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 40
    titles = [panel["title"] for panel in panels if panel["type"] == "row"]
    assert titles[:6] == [
        "Is it healthy?", "Are callers served?", "Is ThingSpace well?", "Are tokens well?", "Do requests finish?", "Who uses it?",
    ]  # fmt: skip
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert place["x"] + place["w"] <= 24 and not taken & cells, panel["title"]
        taken |= cells


def test_every_panel_uses_the_variables_and_says_what_it_shows():
    names = {variable["name"] for variable in BOARD["templating"]["list"]}
    assert names == {"datasource", "namespace", "job", "replica"}
    for panel in BOARD["panels"]:
        if panel["type"] == "row":
            continue
        assert panel["description"] and panel["targets"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert "$replica" in target["expr"] or "ALERTS" in target["expr"], panel["title"]
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= names | {"__rate_interval", "__range"}, panel["title"]
