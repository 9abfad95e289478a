"""What each value changes, and which values are refused."""

import pytest
import yaml
from conftest import CHART, example, helm, merged, refusal, release


def embedded(over: dict | None = None):
    return release(example("embedded", over))


def test_two_forms():
    one, many = embedded(), release(example("nats"))
    assert one.workload["kind"] == "StatefulSet" and many.workload["kind"] == "Deployment"
    assert one.workload["spec"]["replicas"] == 1 and many.workload["spec"]["replicas"] == 3
    (claim,) = one.workload["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert claim["spec"]["resources"]["requests"]["storage"] == "1Gi"
    assert one.workload["spec"]["serviceName"] == one.of("Service", "-headless")["metadata"]["name"]
    # Immutable in a StatefulSet: a label of the chart's version would make every upgrade fail.
    assert not any("version" in label or "chart" in label for label in claim["metadata"]["labels"])
    writable = [mount["mountPath"] for mount in many.container["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["/run/thingspace-gateway"]
    assert 'socket = "/run/thingspace-gateway/control.sock"' in many.toml


def test_what_an_operator_has_to_say():
    told = refusal({})
    for problem in ("image.repository", "grpc.tls.existingSecret", "auth: callers are not authenticated", "credentials", "networkPolicy.grpc.from"):
        assert problem in told, told


# For a mesh.
PLAINTEXT = {"grpc": {"tls": {"existingSecret": ""}}, "config": {"grpc": {"allow_plaintext": True}}}


def asking(release_):
    (container,) = release_.of("Pod", "-test")["spec"]["containers"]
    return container


SHOWN = [
    # values over the smallest example, path in the manifests, expected value
    ({"fullnameOverride": "esim"}, lambda r: r.workload["metadata"]["name"], "esim"),
    ({"nameOverride": "esim"}, lambda r: r.workload["metadata"]["name"], "gw-esim"),
    ({"namespaceOverride": "other"}, lambda r: {it["metadata"]["namespace"] for it in r}, {"other"}),
    ({"commonLabels": {"team": "iot"}}, lambda r: {it["metadata"]["labels"]["team"] for it in r}, {"iot"}),
    ({"commonLabels": {"team": "iot"}}, lambda r: r.pod["metadata"]["labels"]["team"], "iot"),
    ({"commonAnnotations": {"a": "b"}}, lambda r: {it["metadata"]["annotations"]["a"] for it in r}, {"b"}),
    ({"image": {"tag": "1"}}, lambda r: r.container["image"], "registry.example.com/thingspace-gateway:1"),
    (
        {"image": {"digest": f"sha256:{'a' * 64}"}},
        lambda r: r.container["image"],
        f"registry.example.com/thingspace-gateway@sha256:{'a' * 64}",
    ),
    ({"image": {"pullPolicy": "Always"}}, lambda r: r.container["imagePullPolicy"], "Always"),
    ({"imagePullSecrets": [{"name": "s"}]}, lambda r: r.pod["spec"]["imagePullSecrets"], [{"name": "s"}]),
    ({"replicaCount": 0}, lambda r: r.workload["spec"]["replicas"], 0),
    ({"bindAddress": "[::]"}, lambda r: 'listen = "[::]:50051"' in r.toml, True),
    ({"grpc": {"port": 6000}}, lambda r: r.container["ports"][0], {"name": "grpc", "containerPort": 6000}),
    ({"admin": {"port": 6001}}, lambda r: 'listen = "0.0.0.0:6001"' in r.toml, True),
    ({"service": {"port": 80}}, lambda r: r.of("Service")["spec"]["ports"][0]["port"], 80),
    ({}, lambda r: r.of("Service")["spec"]["ports"][0]["appProtocol"], "https"),
    (PLAINTEXT, lambda r: r.of("Service")["spec"]["ports"][0]["appProtocol"], "kubernetes.io/h2c"),
    ({"service": {"appProtocol": "grpc"}}, lambda r: r.of("Service")["spec"]["ports"][0]["appProtocol"], "grpc"),
    ({}, lambda r: asking(r)["args"][2:], ["--tls", "--ca-file=/etc/thingspace-gateway/ca.crt"]),
    ({"grpc": {"tls": {"caKey": ""}}}, lambda r: asking(r)["args"][2:], ["--tls"]),
    (PLAINTEXT, lambda r: asking(r)["args"][2:], []),
    ({"service": {"appProtocol": ""}}, lambda r: "appProtocol" in r.of("Service")["spec"]["ports"][0], False),
    ({"service": {"labels": {"a": "b"}}}, lambda r: r.of("Service", "-headless")["metadata"]["labels"]["a"], "b"),
    ({"service": {"annotations": {"a": "b"}}}, lambda r: r.of("Service")["metadata"]["annotations"], {"a": "b"}),
    # A StatefulSet requires it.
    ({"service": {"headless": {"enabled": False}}}, lambda r: r.of("Service", "-headless")["spec"]["clusterIP"], "None"),
    ({"store": {"embedded": {"size": "9Gi"}}}, lambda r: claim(r)["resources"]["requests"]["storage"], "9Gi"),
    ({"store": {"embedded": {"storageClassName": "fast"}}}, lambda r: claim(r)["storageClassName"], "fast"),
    ({"store": {"embedded": {"accessModes": ["ReadWriteOncePod"]}}}, lambda r: claim(r)["accessModes"], ["ReadWriteOncePod"]),
    (
        {"store": {"embedded": {"annotations": {"a": "b"}}}},
        lambda r: r.workload["spec"]["volumeClaimTemplates"][0]["metadata"]["annotations"],
        {"a": "b"},
    ),
    ({"store": {"embedded": {"existingClaim": "c"}}}, lambda r: "volumeClaimTemplates" in r.workload["spec"], False),
    (
        {"store": {"embedded": {"existingClaim": "c"}}},
        lambda r: volume(r, "data")["persistentVolumeClaim"],
        {"claimName": "c"},
    ),
    (
        {"store": {"embedded": {"whenDeleted": "Delete"}}},
        lambda r: r.workload["spec"]["persistentVolumeClaimRetentionPolicy"],
        {"whenDeleted": "Delete", "whenScaled": "Retain"},
    ),
    ({"livenessProbe": {"periodSeconds": 7}}, lambda r: r.container["livenessProbe"]["periodSeconds"], 7),
    ({"readinessProbe": {"periodSeconds": 7}}, lambda r: r.container["readinessProbe"]["httpGet"]["path"], "/readyz"),
    ({"preStopSeconds": 20}, lambda r: r.container["lifecycle"]["preStop"], {"sleep": {"seconds": 20}}),
    ({"preStopSeconds": 0}, lambda r: "lifecycle" in r.container, False),
    ({"updateStrategy": {"type": "OnDelete"}}, lambda r: r.workload["spec"]["updateStrategy"], {"type": "OnDelete"}),
    ({"podDisruptionBudget": {"enabled": False}}, lambda r: "PodDisruptionBudget" in r.kinds(), False),
    ({}, lambda r: r.of("PodDisruptionBudget")["spec"]["maxUnavailable"], 1),
    ({"podDisruptionBudget": {"maxUnavailable": "50%"}}, lambda r: r.of("PodDisruptionBudget")["spec"]["maxUnavailable"], "50%"),
    ({"podDisruptionBudget": {"minAvailable": 0}}, lambda r: r.of("PodDisruptionBudget")["spec"]["minAvailable"], 0),
    ({"networkPolicy": {"enabled": False, "grpc": {"from": []}}}, lambda r: "NetworkPolicy" in r.kinds(), False),
    ({"serviceAccount": {"create": False}}, lambda r: r.pod["spec"]["serviceAccountName"], "default"),
    ({"serviceAccount": {"create": False}}, lambda r: "ServiceAccount" in r.kinds(), False),
    ({"serviceAccount": {"name": "sa"}}, lambda r: r.pod["spec"]["serviceAccountName"], "sa"),
    ({"serviceAccount": {"annotations": {"a": "b"}}}, lambda r: r.of("ServiceAccount")["metadata"]["annotations"], {"a": "b"}),
    ({"podSecurityContext": {"runAsUser": None}}, lambda r: "runAsUser" in r.pod["spec"]["securityContext"], False),
    ({"resources": {"limits": {"memory": "2Gi"}}}, lambda r: r.container["resources"]["limits"], {"memory": "2Gi"}),
    ({"podLabels": {"a": "b"}}, lambda r: r.pod["metadata"]["labels"]["a"], "b"),
    # The selectors do not change.
    ({"podLabels": {"app.kubernetes.io/name": "x"}}, lambda r: selected(r), True),
    ({"commonLabels": {"app.kubernetes.io/name": "x"}}, lambda r: selected(r), True),
    ({"podAnnotations": {"a": "b"}}, lambda r: r.pod["metadata"]["annotations"]["a"], "b"),
    ({"nodeSelector": {"a": "b"}}, lambda r: r.pod["spec"]["nodeSelector"], {"a": "b"}),
    ({"tolerations": [{"operator": "Exists"}]}, lambda r: r.pod["spec"]["tolerations"], [{"operator": "Exists"}]),
    ({"affinity": {"nodeAffinity": {}}}, lambda r: r.pod["spec"]["affinity"], {"nodeAffinity": {}}),
    ({"topologySpreadConstraints": []}, lambda r: "topologySpreadConstraints" in r.pod["spec"], False),
    ({"priorityClassName": "high"}, lambda r: r.pod["spec"]["priorityClassName"], "high"),
    ({"runtimeClassName": "gvisor"}, lambda r: r.pod["spec"]["runtimeClassName"], "gvisor"),
    ({"extraEnv": [{"name": "A", "value": "b"}]}, lambda r: r.container["env"], [{"name": "A", "value": "b"}]),
    ({"extraEnvFrom": [{"secretRef": {"name": "s"}}]}, lambda r: r.container["envFrom"], [{"secretRef": {"name": "s"}}]),
    ({"extraVolumes": [{"name": "x", "emptyDir": {}}]}, lambda r: volume(r, "x"), {"name": "x", "emptyDir": {}}),
    (
        {"extraVolumes": [{"name": "x", "emptyDir": {}}], "extraVolumeMounts": [{"name": "x", "mountPath": "/x"}]},
        lambda r: r.container["volumeMounts"][-1],
        {"name": "x", "mountPath": "/x"},
    ),
    ({"helmTest": {"enabled": False}}, lambda r: "Pod" in r.kinds(), False),
    ({"global": {"anything": 1}, "enabled": True}, lambda r: r.workload["kind"], "StatefulSet"),
]


def claim(release_):
    return release_.workload["spec"]["volumeClaimTemplates"][0]["spec"]


def volume(release_, name):
    (found,) = [it for it in release_.pod["spec"]["volumes"] if it["name"] == name]
    return found


def selected(release_):
    selector = release_.workload["spec"]["selector"]["matchLabels"]
    services = [it["spec"]["selector"] for it in release_ if it["kind"] == "Service"]
    labels = release_.pod["metadata"]["labels"]
    return all(wanted.items() <= labels.items() for wanted in [selector, *services])


@pytest.mark.parametrize(("over", "look", "wanted"), SHOWN, ids=[yaml.safe_dump(case[0], default_flow_style=True).strip() for case in SHOWN])
def test_a_value_is_shown(over, look, wanted):
    assert look(embedded(over)) == wanted


# refusals.yaml lists more values, which the gateway refuses as well.
REFUSED = [
    ("embedded", {"replicaCount": 2}, "cannot share one embedded store"),
    ("embedded", {"replicaCount": -1}, "replicaCount"),
    ("embedded", {"store": {"kind": "redis"}}, "store/kind"),
    ("embedded", {"store": {"embedded": {"whenDeleted": "Recycle"}}}, "whenDeleted"),
    ("embedded", {"store": {"embedded": {"accessModes": ["ReadWriteMany"]}}}, "accessModes"),
    ("embedded", {"image": {"repository": ""}}, "image.repository"),
    ("embedded", {"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
    ("embedded", {"config": {"grpc": {"listen": "0.0.0.0:1"}}}, "listen"),
    ("embedded", {"credentials": [{"name": "main", "accounts": ["acc-1"]}]}, "existingSecret"),
    ("embedded", {"credentials": [{"name": "m", "accounts": ["acc-1"], "existingSecret": "s", "password": "p"}]}, "password"),
    ("embedded", {"credentials": [{"name": "m", "accounts": ["acc-1"], "existingSecret": "s", "keys": {"pass": "p"}}]}, "pass"),
    ("embedded", {"service": {"type": "LoadBalancer"}}, "type"),
    ("callbacks", {"callbacks": {"service": {"type": "ExternalName"}}}, "type"),
    ("callbacks", {"callbacks": {"service": {"externalTrafficPolicy": "Some"}}}, "externalTrafficPolicy"),
    # Kubernetes refuses these, although its schemas accept them.
    ("callbacks", {"callbacks": {"service": {"type": "ClusterIP"}}}, "callbacks.service.externalTrafficPolicy"),
    ("callbacks", {"callbacks": {"service": {"type": "ClusterIP", "nodePort": 30443}}}, "callbacks.service.nodePort"),
    (
        "callbacks",
        {"callbacks": {"service": {"type": "NodePort", "loadBalancerSourceRanges": ["203.0.113.0/24"]}}},
        "callbacks.service.loadBalancerSourceRanges",
    ),
    ("callbacks", {"networkPolicy": {"callbacks": {"from": []}}}, "networkPolicy.callbacks.from"),
    ("embedded", {"networkPolicy": {"grpc": {"from": []}}}, "networkPolicy.grpc.from"),
    ("embedded", {"networkPolicy": {"grpc": {"form": []}}}, "form"),
    ("embedded", {"preStopSeconds": -1}, "preStopSeconds"),
    ("embedded", {"podDisruptionBudget": {"minAvailable": 1, "maxUnavailable": 1}}, "Kubernetes accepts only one of them"),
    ("embedded", {"podDisruptionBudget": {"minAvailable": "half"}}, "minAvailable"),
    ("embedded", {"replicas": 1}, "replicas"),
    ("nats", {"store": {"nats": {"url": ""}}}, "store.nats.url"),
    ("nats", {"store": {"nats": {"url": "http://nats"}}}, "nats/url"),
    ("nats", {"store": {"nats": {"tls": {"caKey": ""}}}}, "store.nats.tls"),
    ("nats", {"store": {"nats": {"urlKey": "url"}}}, "set one of them"),
    ("nats", {"store": {"nats": {"url": "", "urlKey": "url", "existingSecret": ""}}}, "store.nats.existingSecret"),
    ("nats", {"store": {"nats": {"tls": {"certKey": "tls.crt"}}}}, "belong together"),
    ("nats", {"config": {"store": {"kind": "embedded"}}}, "kind"),
]


@pytest.mark.parametrize(("base", "over", "wanted"), REFUSED, ids=[f"{case[0]} {case[1]}" for case in REFUSED])
def test_what_would_not_work_is_refused(base, over, wanted):
    told = refusal(example(base, over))
    assert wanted in told, told


def test_a_pod_lives_longer_than_its_drain():
    for drain, seconds in [(None, 75), ("1m 30s", 90), ("1500ms", 2), ("10m", 600)]:
        over = {"config": {"grpc": {"drain": drain}}} if drain else {}
        spec = embedded(over).pod["spec"]
        assert spec["terminationGracePeriodSeconds"] == 10 + seconds + 10
    longer = embedded({"terminationGracePeriodSeconds": 120, "preStopSeconds": 25})
    assert longer.pod["spec"]["terminationGracePeriodSeconds"] == 120
    assert "at least 110" in refusal(example("embedded", {"config": {"grpc": {"drain": "90s"}}, "terminationGracePeriodSeconds": 60}))


def test_a_change_of_the_configuration_restarts_the_pods():
    def annotations(over):
        return embedded(over).pod["metadata"]["annotations"]

    assert annotations({}) == annotations({"podLabels": {"a": "b"}})
    assert annotations({}) != annotations({"config": {"polling": {"max": "10m"}}})
    # Values cannot set the checksum.
    assert annotations({"podAnnotations": {"checksum/config": "x"}}) == annotations({})


def test_callbacks_have_a_service_of_their_own():
    assert "28200" not in embedded().toml.replace('listen = "0.0.0.0:28200"', "")
    it = release(example("callbacks"))
    service = it.of("Service", "-callbacks")["spec"]
    assert (service["type"], service["externalTrafficPolicy"]) == ("LoadBalancer", "Local")
    assert service["ports"] == [{"name": "callbacks", "port": 28200, "targetPort": "callbacks", "appProtocol": "https"}]
    assert {"name": "callbacks", "containerPort": 28200} in it.container["ports"]
    other = {"type": "LoadBalancer", "port": 443, "nodePort": 30443, "annotations": {"a": "b"}, "labels": {"c": "d"}}
    other |= {"externalTrafficPolicy": "", "loadBalancerSourceRanges": ["203.0.113.0/24"]}
    plain = release(example("callbacks", {"callbacks": {"port": 9001, "tls": {"existingSecret": ""}, "service": other}}))
    service = plain.of("Service", "-callbacks")
    assert service["metadata"]["annotations"] == {"a": "b"} and service["metadata"]["labels"]["c"] == "d"
    assert service["spec"]["loadBalancerSourceRanges"] == ["203.0.113.0/24"]
    assert "externalTrafficPolicy" not in service["spec"]
    wanted = {"name": "callbacks", "port": 443, "targetPort": "callbacks", "appProtocol": "http", "nodePort": 30443}
    assert service["spec"]["ports"] == [wanted]
    assert 'listen = "0.0.0.0:9001"' in plain.toml and "callbacks-tls" not in plain.toml
    nowhere = {"type": "ClusterIP", "externalTrafficPolicy": ""}
    assert release(example("callbacks", {"callbacks": {"service": nowhere}})).of("Service", "-callbacks")["spec"]["type"] == "ClusterIP"
    off = release(example("callbacks", {"callbacks": {"enabled": False}, "config": {"callbacks": {"register": False}}}))
    assert not [it for it in off if it["metadata"]["name"].endswith("-callbacks")]


def rules(policy: dict) -> dict:
    return {rule["ports"][0]["port"]: rule["from"] for rule in policy["spec"]["ingress"]}


def test_the_network_policy_admits_whom_the_values_name():
    test = {"podSelector": {"matchLabels": {
        "app.kubernetes.io/name": "thingspace-gateway", "app.kubernetes.io/instance": "gw", "app.kubernetes.io/component": "test",
    }}}  # fmt: skip
    caller = {"podSelector": {"matchLabels": {"thingspace-gateway/caller": "true"}}}
    assert rules(embedded().of("NetworkPolicy")) == {"grpc": [caller, test]}
    assert rules(embedded({"helmTest": {"enabled": False}}).of("NetworkPolicy")) == {"grpc": [caller]}
    prometheus = {"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}
    assert rules(embedded({"networkPolicy": {"admin": {"from": [prometheus]}}}).of("NetworkPolicy"))["admin"] == [prometheus]
    assert rules(release(example("callbacks")).of("NetworkPolicy"))["callbacks"] == [{"ipBlock": {"cidr": "0.0.0.0/0"}}]
    # Ports without a listener are not admitted.
    closed = embedded({"networkPolicy": {"callbacks": {"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}}})
    assert "callbacks" not in rules(closed.of("NetworkPolicy"))


def test_the_way_out_is_that_of_the_configuration():
    def ports(over, base="embedded"):
        _dns, out, *more = release(example(base, over)).of("NetworkPolicy")["spec"]["egress"]
        return [port["port"] for port in out["ports"]], more

    assert ports({}) == ([443], [])
    elsewhere = {"base_url": "http://simulator:8090/api", "token_url": "http://tokens/token", "allow_plaintext": True}
    assert ports({"config": {"thingspace": elsewhere}})[0] == [8090, 80]
    assert ports({"config": {"thingspace": {"proxy_url": "http://proxy:3128"}}})[0] == [443, 3128]
    assert ports({"config": {"telemetry": {"otlp_endpoint": "http://collector:4317"}}})[0] == [443, 4317]
    # The cluster's public keys come from the API server, by its Service and behind it.
    assert ports({}, "nats")[0] == [443, 6443, 4222]
    no_keys = {"auth": {"kubernetes": {"enabled": False}, "allow": []}, "config": {"grpc": {"allow_unauthenticated_remote_callers": True}}}
    assert ports(no_keys, "nats")[0] == [443, 4222]
    assert ports({"store": {"nats": {"url": "tls://a:14222, tls://b"}}} | no_keys, "nats")[0] == [443, 14222, 4222]
    assert ports({"store": {"nats": {"url": "", "urlKey": "url"}}} | no_keys, "nats")[0] == [443, 4222]
    assert ports({"config": {"auth": {"jwt": {"jwks_url": "https://login.example.com:8443/keys"}}}}, "callbacks")[0] == [443, 8443, 4317]
    extra = {"ports": [{"port": 8443}]}
    assert ports({"networkPolicy": {"egress": {"extra": [extra]}}})[1] == [extra]
    open_ = embedded({"networkPolicy": {"egress": {"enabled": False}}}).of("NetworkPolicy")["spec"]
    assert open_["policyTypes"] == ["Ingress"] and "egress" not in open_


def test_nats_is_told_by_values_or_by_a_secret():
    it = release(example("nats", {"store": {"nats": {"url": "", "urlKey": "url"}}}))
    wanted = {"name": "THINGSPACE_GATEWAY__STORE__NATS__URL", "valueFrom": {"secretKeyRef": {"name": "thingspace-nats", "key": "url"}}}
    assert it.container["env"] == [wanted] and "nats://" not in it.toml and "tls://" not in it.toml
    bare = release(example("nats", {"store": {"nats": {"existingSecret": "", "tls": {"existingSecret": ""}}}}))
    assert "creds_file" not in bare.toml and "\nca_file" not in bare.toml
    mutual = release(example("nats", {"store": {"nats": {"credsKey": "", "tls": {"certKey": "tls.crt", "keyKey": "tls.key"}}}}))
    assert "creds_file" not in mutual.toml and 'cert_file = "/etc/thingspace-gateway/nats-tls/tls.crt"' in mutual.toml
    strategy = {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    assert bare.workload["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert release(example("nats", {"updateStrategy": strategy})).workload["spec"]["strategy"] == strategy
    assert "Service" in bare.kinds() and bare.of("Service", "-headless")
    alone = release(example("nats", {"service": {"headless": {"enabled": False}}}))
    assert alone.kinds().count("Service") == 1


def test_pods_are_spread_and_their_own_selector_is_kept():
    own = {"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"a": "b"}}}
    assert embedded({"topologySpreadConstraints": [own]}).pod["spec"]["topologySpreadConstraints"] == [own]
    it = embedded()
    selector = it.workload["spec"]["selector"]
    assert [c["labelSelector"] for c in it.pod["spec"]["topologySpreadConstraints"]] == [selector, selector]


def test_extra_objects_are_rendered():
    text = "kind: Secret\napiVersion: v1\nmetadata: {name: '{{ .Release.Name }}-a', namespace: x}"
    map_ = {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "{{ .Release.Name }}-b", "namespace": "x"}}
    it = embedded({"extraObjects": [text, map_]})
    assert [o["metadata"]["name"] for o in it if o["kind"] == "Secret"] == ["gw-a", "gw-b"]


def test_the_pod_may_do_nothing():
    for base in ("embedded", "callbacks", "nats"):
        it = release(example(base))
        for pod in (it.pod["spec"], it.of("Pod", "-test")["spec"]):
            assert pod["automountServiceAccountToken"] is False and pod["enableServiceLinks"] is False
            assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
            container = pod["containers"][0]["securityContext"]
            assert container == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
        assert not it.of("ServiceAccount")["automountServiceAccountToken"]


def test_helm_test_asks_the_service():
    it = embedded({"fullnameOverride": "", "service": {"port": 80}})
    pod = it.of("Pod", "-test")
    assert pod["spec"]["containers"][0]["args"][:2] == ["health", "--address=gw-thingspace-gateway.esim.svc:80"]
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert not selected_by(it.of("Service"), pod)


def selected_by(service: dict, pod: dict) -> bool:
    return service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()


def test_notes_say_how_to_call_it():
    def notes(over):
        # Helm 3 needs a cluster even for this.
        told = helm("install", "gw", CHART, "--namespace", "esim", "--dry-run=client", values=example("callbacks", over))
        assert told.returncode == 0, told.stderr
        return told.stdout.split("NOTES:")[1]

    told = notes({})
    call = 'grpcurl -cacert ca.crt -authority gw-thingspace-gateway.esim.svc -H "authorization: Bearer $TOKEN"'
    assert f"{call} -import-path proto -proto thingspace/esim/v1/esim.proto" in told
    assert "kubectl -n esim exec statefulset/gw-thingspace-gateway -- /thingspace-gateway status" in told
    assert "https://gateway.example.com:28200/thingspace" in told
    told = notes({"config": {"grpc": {"reflection": True}}, "networkPolicy": {"enabled": False}})
    assert f"{call} localhost:50051 describe thingspace.esim.v1.EsimService" in told and "no NetworkPolicy" in told
    plain = {"grpc": {"tls": {"existingSecret": "", "clientCa": {"existingConfigMap": ""}}}, "config": {"grpc": {"allow_plaintext": True}}}
    assert 'grpcurl -plaintext -H "authorization' in notes({**plain, "auth": {"allow": [{"callers": ["*"], "methods": ["*"], "accounts": ["*"]}]}})


def test_an_umbrella_chart_takes_it(tmp_path):
    (tmp_path / "charts").mkdir()
    (tmp_path / "charts" / "thingspace-gateway").symlink_to(CHART)
    chart = {"apiVersion": "v2", "name": "umbrella", "version": "0.0.1"}
    chart["dependencies"] = [{"name": "thingspace-gateway", "version": ">=0", "condition": "thingspace-gateway.enabled"}]
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(chart))
    values = merged(example("embedded"), {"enabled": True})
    for version in ("3", "4"):
        for enabled in (True, False):
            whole = {"global": {"env": "prod"}, "thingspace-gateway": {**values, "enabled": enabled}}
            rendered = helm("template", "gw", tmp_path, values=whole, version=version)
            assert rendered.returncode == 0, rendered.stderr
            assert ("kind: StatefulSet" in rendered.stdout) == enabled
