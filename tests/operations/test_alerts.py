"""Each alert fires and stays quiet, and each has a runbook."""

import re

import pytest
import yaml
from conftest import ALERTS, ROOT, promtool

CASES = yaml.safe_load((ROOT / "tests" / "operations" / "alerts.yaml").read_text())
RULES = {rule["alert"]: rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"] if "alert" in rule}
JOB = {"job": "gateway", "namespace": "esim"}
REPLICA = {"up{$a}": "1x5000", "thingspace_gateway_ready{$a}": "1x5000"}


def text(labels: dict) -> str:
    return ",".join(f'{name}="{value}"' for name, value in labels.items())


def labels(alert: dict) -> dict:
    added = {**JOB, "severity": RULES[alert["alertname"]]["labels"]["severity"], "alertstate": "firing"}
    return {name: value for name, value in {**added, **alert}.items() if value is not None}


def test_the_rules_are_valid():
    told = promtool("check", "rules", "--lint-fatal", ALERTS)
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.parametrize("case", CASES, ids=[case["about"] for case in CASES])
def test_an_alert_fires_or_stays_quiet(case, tmp_path):
    series = {**REPLICA, **case["series"]}
    replicas = {f"${name}": text({**JOB, "instance": name}) for name in "ab"}
    inputs = []
    for name, values in series.items():
        for replica, its in replicas.items():
            name = name.replace(replica, its)
        # YAML reads 0x20 as a number in hexadecimal.
        assert isinstance(values, str), f"quote {values}"
        inputs.append({"series": name, "values": values})
    firing = [{"labels": f"ALERTS{{{text(labels(alert))}}}", "value": 1} for alert in case.get("firing", [])]
    test = {
        "interval": "1m",
        "input_series": inputs,
        "promql_expr_test": [{"expr": 'ALERTS{alertstate="firing"}', "eval_time": case["at"], "exp_samples": firing}],
    }
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": [test]}))
    told = promtool("test", "rules", file)
    assert told.returncode == 0, told.stdout + told.stderr


def test_every_alert_has_cases():
    fires = {alert["alertname"] for case in CASES for alert in case.get("firing", [])}
    quiet = {case["quiet"] for case in CASES if "quiet" in case}
    assert fires == RULES.keys() and quiet == RULES.keys()


def test_a_wrong_rule_would_be_seen(tmp_path):
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(ALERTS.read_text().replace("86400", "1 +"))
    assert promtool("check", "rules", wrong).returncode != 0


@pytest.mark.parametrize("name", RULES)
def test_an_alert_says_what_it_is_about(name):
    rule, (labelled, *_) = RULES[name], [alert for case in CASES for alert in case.get("firing", []) if alert["alertname"] == name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    annotations = rule["annotations"]
    assert annotations.keys() == {"summary", "description", "runbook_url"}
    # The value or what it is about, unless nothing is left to name.
    used = set(re.findall(r"\$labels\.(\w+)", annotations["description"]))
    assert used or "$value" in annotations["description"] or name == "ThingspaceGatewayAbsent"
    assert used <= labels(labelled).keys(), used
    page, _, anchor = annotations["runbook_url"].partition("#")
    headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_runbook_has_an_alert_and_its_parts():
    page = ROOT / "docs" / "runbooks.md"
    used = {rule["annotations"]["runbook_url"].partition("#")[2] for rule in RULES.values()}
    for section in page.read_text().split("\n## ")[1:]:
        heading = section.split("\n", 1)[0]
        assert heading.lower().replace(" ", "-") in used, f"no alert leads to {heading}"
        for part in ("**What it means.**", "**What callers notice.**", "**What to look at.**", "**What to do.**"):
            assert part in section, f"{heading} lacks {part}"
        for name in re.findall(r"`(ThingspaceGateway\w+)`", section):
            assert name in RULES, name
