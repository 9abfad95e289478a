"""What Prometheus, Grafana and the autoscaler get."""

import json
import sys

import pytest
import yaml
from conftest import CHART, KUBERNETES, REPOSITORY, example, helm, merged, refusal, release, run

ALERTS = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"]
PROMETHEUS = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
ADMITTED = {"networkPolicy": {"admin": {"from": [PROMETHEUS]}}}


def monitored(metrics: dict, base: str = "embedded"):
    return release(example(base, {**ADMITTED, "metrics": metrics}))


def test_everything_is_off_by_default():
    added = {"ServiceMonitor", "PodMonitor", "PrometheusRule", "HorizontalPodAutoscaler"}
    for base in ("embedded", "callbacks", "nats"):
        assert not added & set(release(example(base)).kinds())
        assert release(example(base)).kinds().count("ConfigMap") == 1


@pytest.mark.parametrize("base", ["embedded", "callbacks", "nats"])
def test_a_service_monitor_selects_only_the_service_of_the_metrics(base):
    on = {"enabled": True, "labels": {"release": "prometheus"}, "annotations": {"a": "b"}, "interval": "30s", "scrapeTimeout": "10s"}
    rules = {"relabelings": [{"action": "labeldrop", "regex": "pod"}], "metricRelabelings": [{"action": "drop", "regex": "x"}]}
    it = monitored({"serviceMonitor": {**on, **rules}}, base)
    monitor = it.of("ServiceMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus" and monitor["metadata"]["annotations"] == {"a": "b"}
    selector, namespace = monitor["spec"]["selector"]["matchLabels"], monitor["spec"]["namespaceSelector"]["matchNames"]
    (service,) = [s for s in it if s["kind"] == "Service" and selector.items() <= s["metadata"]["labels"].items()]
    assert service["metadata"]["name"].endswith("-metrics") and [service["metadata"]["namespace"]] == namespace
    assert service["spec"]["selector"].items() <= it.pod["metadata"]["labels"].items()
    assert service["spec"]["publishNotReadyAddresses"] and service["spec"]["clusterIP"] == "None"
    (port,) = service["spec"]["ports"]
    assert port["targetPort"] in [its["name"] for its in it.container["ports"]]
    assert monitor["spec"]["endpoints"] == [
        {"port": port["name"], "path": "/metrics", "interval": "30s", "scrapeTimeout": "10s", **rules}
    ]


def test_a_pod_monitor_selects_the_pods():
    monitor = monitored({"podMonitor": {"enabled": True, "labels": {"release": "prometheus"}}}, "nats").of("PodMonitor")
    it = release(example("nats"))
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= it.pod["metadata"]["labels"].items()
    assert monitor["spec"]["podMetricsEndpoints"] == [{"port": "admin", "path": "/metrics"}]
    # The pod of `helm test` is not scraped.
    assert not monitor["spec"]["selector"]["matchLabels"].items() <= it.of("Pod", "-test")["metadata"]["labels"].items()


def test_the_rule_has_the_alerts_of_the_file():
    assert monitored({"prometheusRule": {"enabled": True}}).of("PrometheusRule")["spec"]["groups"] == ALERTS
    values = {
        "enabled": True,
        "labels": {"release": "prometheus"},
        "alertLabels": {"team": "iot", "severity": "other"},
        "runbookUrl": "https://wiki.example.com/runbooks",
        "disabled": ["ThingspaceGatewayPollsLate"],
    }
    rule = monitored({"prometheusRule": values}).of("PrometheusRule")
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    (before, after) = ([r for group in groups for r in group["rules"]] for groups in (ALERTS, rule["spec"]["groups"]))
    assert len(after) == len(before) - 1
    for alert in (r for r in after if "alert" in r):
        assert alert["alert"] != "ThingspaceGatewayPollsLate"
        assert alert["labels"]["team"] == "iot" and alert["labels"]["severity"] in ("critical", "warning")
        assert alert["annotations"]["runbook_url"].startswith("https://wiki.example.com/runbooks#")
    # Grafana and Alertmanager expand these, not Helm.
    assert "{{ $labels.instance }}" in yaml.safe_dump(rule)


def test_the_dashboard_is_the_file():
    values = {"enabled": True, "annotations": {"grafana_folder": "IoT"}}
    map_ = monitored({"dashboard": values}).of("ConfigMap", "-dashboard")
    assert map_["metadata"]["labels"]["grafana_dashboard"] == "1" and map_["metadata"]["annotations"] == {"grafana_folder": "IoT"}
    assert json.loads(map_["data"]["thingspace-gateway.json"]) == json.loads((CHART / "files" / "dashboard.json").read_text())


def test_an_autoscaler_replaces_the_number_of_replicas(tmp_path):
    watches = {"type": "Pods", "pods": {"metric": {"name": "thingspace_gateway_watches_open"}, "target": {"type": "AverageValue", "averageValue": "20000"}}}
    it = release(example("nats", {"autoscaling": {"enabled": True, "maxReplicas": 9, "metrics": [watches]}}))
    scaler = it.of("HorizontalPodAutoscaler")["spec"]
    assert "replicas" not in it.workload["spec"]
    assert scaler["scaleTargetRef"]["name"] == it.workload["metadata"]["name"] and scaler["scaleTargetRef"]["kind"] == it.workload["kind"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (3, 9)
    assert scaler["metrics"][0]["resource"]["target"]["averageUtilization"] == 70 and scaler["metrics"][1] == watches
    assert scaler["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 600
    alone = release(example("nats", {"autoscaling": {"enabled": True, "targetCPUUtilizationPercentage": None, "metrics": [watches]}}))
    assert alone.of("HorizontalPodAutoscaler")["spec"]["metrics"] == [watches]
    file = tmp_path / "scaler.yaml"
    file.write_text(yaml.safe_dump(it.of("HorizontalPodAutoscaler")))
    for minor in KUBERNETES:
        told = run(sys.executable, "-m", "kubernetes_validate", "--strict", "-k", minor, file)
        assert told.returncode == 0, told.stdout + told.stderr


SCALED = {"autoscaling": {"enabled": True}}


@pytest.mark.parametrize(
    ("base", "over", "wanted"),
    [
        ("embedded", {"metrics": {"serviceMonitor": {"enabled": True}}}, "networkPolicy.admin.from: Prometheus could not scrape"),
        ("embedded", {"metrics": {"podMonitor": {"enabled": True}}}, "networkPolicy.admin.from: Prometheus could not scrape"),
        (
            "embedded",
            {**ADMITTED, "metrics": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}},
            "every gateway would be scraped twice",
        ),
        ("embedded", {"metrics": {"serviceMonitor": {"interval": "often"}}}, "interval"),
        ("embedded", {"metrics": {"prometheusRule": {"runbookUrl": "runbooks.md"}}}, "runbookUrl"),
        ("embedded", {"metrics": {"grafana": {}}}, "grafana"),
        ("embedded", SCALED, "autoscaling.enabled: several gateways cannot share one embedded store"),
        ("nats", merged(SCALED, {"autoscaling": {"minReplicas": 7}}), "minReplicas (7) is larger than maxReplicas (6)"),
        ("nats", merged(SCALED, {"autoscaling": {"targetCPUUtilizationPercentage": None}}), "autoscaling: nothing decides"),
        ("nats", merged(SCALED, {"resources": {"requests": {"cpu": None}}}), "a part of resources.requests.cpu, which is not set"),
        # A drain of nodes must be possible with the smallest number of replicas.
        ("nats", merged(SCALED, {"autoscaling": {"minReplicas": 2}}), "podDisruptionBudget.minAvailable: 2 of 2"),
    ],
)
def test_what_would_not_work_is_refused(base, over, wanted):
    told = refusal(example(base, over))
    assert wanted in told, told


def test_a_drain_shorter_than_an_order_is_a_warning():
    def notes(over):
        told = helm("install", "gw", CHART, "--namespace", "esim", "--dry-run=client", values=example("embedded", over))
        assert told.returncode == 0, told.stderr
        return told.stdout.split("NOTES:")[1]

    assert "WARNING" not in notes({})
    assert "config.grpc.drain is shorter" in notes({"config": {"grpc": {"drain": "30s"}}})
    assert "config.grpc.drain is shorter" in notes({"config": {"thingspace": {"order_timeout": "2m"}}})


def test_the_image_says_what_it_is():
    text = (REPOSITORY / "Dockerfile").read_text()
    for label in ("title", "description", "licenses", "version", "revision", "source"):
        assert f"org.opencontainers.image.{label}=" in text
