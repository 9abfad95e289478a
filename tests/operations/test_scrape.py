"""A real Prometheus scrapes a gateway that has done its work: every expression of the dashboard and the alerts finds its series."""

import contextlib
import hashlib
import json
import re
import socket
import subprocess
import sys
import urllib.parse
import urllib.request

import grpc
import pytest
import yaml
from conftest import ALERTS, PROMETHEUS, ROOT, expressions

sys.path.insert(0, str(ROOT / "tests" / "clients"))
from certificates import Authority, write
from harness import ACCOUNT, DEVICE, PATIENCE, Gateway, Nats, Program, Simulator, Stub, channel, free_port, reason, wait_until

TOKEN = "a token of a test"
# Larger states are final.
PENDING = 1
EXPRESSIONS = list(expressions())
ALLOW = f'[[auth.allow]]\ncallers = ["token:orders"]\nmethods = ["*"]\naccounts = ["{ACCOUNT}"]'


def get(url):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=PATIENCE) as answer:
        return answer.read().decode()


class Prometheus(Program):
    """Scrapes a gateway each second, and evaluates the alerts."""

    def __init__(self, folder, target):
        self.address = f"127.0.0.1:{free_port()}"
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(ALERTS)],
            "scrape_configs": [{"job_name": "gateway", "static_configs": [{"targets": [target], "labels": {"namespace": "esim"}}]}],
        }
        file = folder / "prometheus.yaml"
        file.write_text(yaml.safe_dump(config))
        storage = f"--storage.tsdb.path={folder / 'prometheus'}"
        super().__init__(folder, "prometheus", [PROMETHEUS / "prometheus", f"--config.file={file}", storage, f"--web.listen-address={self.address}"])
        self.find(r"(Server is ready to receive web requests)")

    def query(self, expression):
        """The series of an expression, now."""
        answer = json.loads(get(f"http://{self.address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"))
        assert answer["status"] == "success", answer
        return answer["data"]["result"]

    def wait_for(self, expression):
        return wait_until(lambda: self.query(expression), expression)


def callback_port():
    """A free port of those that ThingSpace calls."""
    for port in range(28200, 28221):
        with contextlib.suppress(OSError), socket.socket() as one:
            one.bind(("127.0.0.1", port))
            return port
    pytest.fail("no port for callbacks is free")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("operations")


@pytest.fixture(scope="module")
def admin():
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def prometheus(folder, admin):
    authority, port = Authority(), callback_port()
    # Less than a quarter of its time is left.
    cert, key = write(folder, "server", authority.issue(age=9))
    tokens = folder / "tokens"
    line = f"orders {hashlib.sha256(TOKEN.encode()).hexdigest()}\n"
    tokens.write_text(line)
    sections = {
        "grpc": {"listen": "127.0.0.1:0", "tls_cert_file": cert, "tls_key_file": key},
        "auth": {"tokens_file": str(tokens)},
        "admin": {"listen": admin},
        "callbacks": {
            "enabled": True,
            "register": True,
            "listen": f"127.0.0.1:{port}",
            "public_url": f"http://127.0.0.1:{port}/callbacks",
            "grace": "0s",
        },
        "limits": {"caller_watches": 1},
    }
    with Nats(folder) as nats, Simulator(folder) as simulator:
        sections |= nats.store(folder, "gateway")
        # Without a registration, the first result comes from polls.
        simulator.send("POST", "/faults", endpoint="list_callbacks", answer={"status": {"code": 404, "body": "{}"}})
        with Gateway(folder, simulator, entries=ALLOW, **sections) as gateway, Prometheus(folder, admin) as prometheus:
            credentials = grpc.ssl_channel_credentials(authority.pem)
            with channel(gateway.address, credentials) as open_channel:
                work(simulator, gateway, prometheus, Stub(open_channel))
            tokens.write_text("no line of tokens\n")
            prometheus.wait_for('thingspace_gateway_files_refused{files="tokens"} == 1')
            yield prometheus


def work(simulator, gateway, prometheus, stub):
    """Does everything that has a metric."""
    with_token = {"metadata": [("authorization", f"Bearer {TOKEN}")]}

    def refused(call, wanted):
        with pytest.raises(grpc.RpcError) as raised:
            call()
        assert reason(raised.value) == wanted, raised.value

    def order(digit):
        return stub.order([{**DEVICE, "iccid": DEVICE["iccid"][:-1] + digit}], **with_token).request_id

    simulator.orders_end("success")
    polled = order("0")
    wait_until(lambda: stub.status(polled, **with_token).state > PENDING, "a result by polls")
    simulator.send("DELETE", "/faults")
    prometheus.wait_for('thingspace_gateway_registration_state{state="registered"} == 1')

    simulator.orders_end("pending")
    called = order("1")
    watch = stub.watch(called, **with_token)
    next(watch)
    prometheus.wait_for("thingspace_gateway_watches_open == 1")
    refused(lambda: next(stub.watch(called, **with_token)), "OVERLOADED")
    simulator.finish(called)
    assert list(watch)

    refused(lambda: stub.status(called), "CALLER_UNAUTHENTICATED")
    host, port = gateway.address.rsplit(":", 1)
    with socket.create_connection((host, int(port))) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        while stranger.recv(1024):
            pass
    order("2")
    simulator.send("POST", "/faults", endpoint="status", answer="drop")
    refused(lambda: stub.status("elsewhere-1", **with_token), "UPSTREAM_UNAVAILABLE")


def selectors(expression):
    """The metrics in an expression, with their labels."""
    return re.findall(r"\b((?:thingspace_gateway_\w+|rpc_\w+|http_client_\w+|process_\w+)(?:\{[^}]*\})?)", expression)


def test_prometheus_scrapes_it(prometheus):
    assert prometheus.query("up") and prometheus.query("up")[0]["value"][1] == "1"


def test_the_text_is_clean(prometheus, admin):
    text = get(f"http://{admin}/metrics")
    told = subprocess.run([PROMETHEUS / "promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=PATIENCE)
    # OpenTelemetry's conventions have names that end in "count".
    accepted = r'process_\w+_count .* should not have "_count" suffix'
    found = [line for line in (told.stdout + told.stderr).splitlines() if line.strip() and not re.match(accepted, line)]
    assert not found, found


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_an_expression_finds_its_series(where, expression, prometheus):
    if where.startswith("ThingspaceGateway"):
        # Alerts that do not fire have no series, but their metrics do.
        for selector in selectors(expression):
            selector = re.sub(r"\s+", "", selector)
            assert prometheus.query(f"last_over_time({selector}[10m])"), selector
    else:
        prometheus.wait_for(expression)


def test_the_alerts_that_fire_are_those_of_the_scenario(prometheus):
    prometheus.wait_for('ALERTS{alertname="ThingspaceGatewayFilesRefused",alertstate="firing"}')
    prometheus.wait_for('ALERTS{alertname="ThingspaceGatewayCertificateExpires",alertstate="pending"}')
    active = {it["metric"]["alertname"] for it in prometheus.query("ALERTS")}
    assert not {"ThingspaceGatewayNotReady", "ThingspaceGatewayStoreUnusable", "ThingspaceGatewayReplicaDown"} & active, active
