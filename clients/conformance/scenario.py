"""Runs one scenario with the driver of one language. README.md describes the steps.

The gateway, the simulated ThingSpace, proxies and the driver are real processes. Each scenario has its own, and a folder of
its own, so that scenarios can run at the same time.
"""

import contextlib
import json
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "clients"))

from certificates import Authority, Issuer, write
from harness import ACCOUNT, DRIVERS, GATEWAY, PATIENCE, Gateway, Nats, Relay, Simulator
from harness import code_of_the_docs, environment, fetch, free_port, wait_until
from proxies import Envoy, Nginx

SCENARIOS = Path(__file__).parent / "scenarios"
# `$set` in an expectation: any value but null, "" and false.
SET = "$set"


class Driver:
    """The driver of a language. It gets commands as lines of JSON, and prints events as lines of JSON."""

    def __init__(self, folder, name, language, config):
        (folder / f"{name}.json").write_text(json.dumps(config))
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            command = [*DRIVERS[language], folder / f"{name}.json"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True}
            self.process = subprocess.Popen(command, cwd=folder, env=environment(), **pipes)
        self.changed = threading.Condition()
        self.unread, self.ended = [], False
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            with self.changed:
                self.unread.append(json.loads(line))
                self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def send(self, **command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def take(self, id):
        """Waits for the next event with an id, or without one."""

        def find():
            return next((event for event in self.unread if event.get("id") == id), None)

        with self.changed:
            self.changed.wait_for(lambda: find() or self.ended, PATIENCE)
            assert (event := find()), f"no event of {id or 'the driver'}; other events: {self.text(self.unread)}"
            self.unread.remove(event)
            return event

    def close(self):
        """Closes the client, which must leave nothing that keeps the process running."""
        self.send(do="close")
        assert self.take(None) == {"event": "closed"}
        self.process.stdin.close()
        assert self.process.wait(PATIENCE) == 0
        left = [event for event in self.unread if event["event"] != "cancelled"]
        assert not left, f"events that the scenario does not expect: {self.text(left)}"

    def kill(self):
        self.process.kill()
        self.process.wait()

    @staticmethod
    def text(events):
        return json.dumps(events)[:2000]


class Watched:
    """What a consumer of a watch knows. It misses no change, and gets none twice."""

    def __init__(self, position=None):
        self.revision, self.state, self.devices = position or (0, None, {})
        # Positions from which another watch can continue, by the number of updates.
        self.history = [(0, None, {})]

    def apply(self, event):
        assert event["revision"] > self.revision, f"revision {self.revision} and then {event['revision']}"
        self.revision, self.state = event["revision"], event["state"]
        self.devices = {} if event["event"] == "snapshot" else dict(self.devices)
        for device in event["devices"]:
            before = self.devices.get(device["iccid"])
            assert before != device, f"the same change twice: {device}"
            self.devices[device["iccid"]] = device
        counts = {"total": len(self.devices), "pending": 0, "succeeded": 0, "failed": 0}
        for device in self.devices.values():
            counts[{"SUCCEEDED": "succeeded", "FAILED": "failed"}.get(device["state"], "pending")] += 1
        assert event["counts"] == counts, f"{event['counts']}, but the devices are {counts}"
        self.history.append((self.revision, self.state, self.devices))


def matches(expected, value):
    """Whether a value has what is expected of it. An object may have more fields."""
    if isinstance(expected, dict):
        return isinstance(value, dict) and all(matches(item, value.get(key)) for key, item in expected.items())
    if isinstance(expected, list):
        return isinstance(value, list) and len(value) == len(expected) and all(map(matches, expected, value))
    return bool(value) if expected == SET else value == expected


def listing(id, count):
    return [f"{id}{number}" for number in range(1, count + 1)] if count else [id]


class Scenario:
    def __init__(self, name, language, folder):
        self.name, self.language, self.folder = name, language, folder
        self.steps = yaml.safe_load((SCENARIOS / f"{name}.yaml").read_text())["steps"]
        self.programs, self.drivers, self.started = {}, {}, {}
        self.driver_of, self.last, self.watched, self.devices = {}, {}, {}, {}
        self.ordered, self.numbers = {}, {}
        self.exits = contextlib.ExitStack()

    def run(self):
        with self.exits:
            self.simulator = self.exits.enter_context(Simulator(self.folder))
            self.simulator.orders_end("pending")
            for number, step in enumerate(self.steps, 1):
                ((verb, options),) = step.items()
                try:
                    getattr(self, f"do_{verb}")(**(options or {}))
                except Exception as error:
                    raise AssertionError(f"{self.language}, {self.name}, step {number}, {step}: {error}\n{self.logs()}") from error
            for driver in list(self.drivers.values()):
                driver.close()

    def logs(self):
        """The ends of all logs."""
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-2000:]}" for log in self.folder.glob("*.log"))

    def fill(self, value):
        """Replaces $folder in texts, and $ID.FIELD by the last value of a field in the events of ID."""
        if isinstance(value, str):
            value = value.replace("$folder", str(self.folder))
            id, _, field = value.removeprefix("$").partition(".")
            return self.last[id][field] if value.startswith("$") else value
        if isinstance(value, dict):
            return {key: self.fill(item) for key, item in value.items()}
        return [self.fill(item) for item in value] if isinstance(value, list) else value

    # Programs

    def do_gateway(self, name="gateway", settings=None, allow="", nats=False):
        settings = self.fill(settings or {})
        if nats:
            if "nats" not in self.programs:
                self.programs["nats"] = self.exits.enter_context(Nats(self.folder))
            settings |= self.programs["nats"].store(self.folder, name)
        entries = f'[[auth.allow]]\ncallers = ["{allow}"]\nmethods = ["*"]\naccounts = ["{ACCOUNT}"]' if allow else ""
        listen = f"127.0.0.1:{free_port()}"
        self.started[name] = lambda: self.exits.enter_context(
            Gateway(self.folder, self.simulator, listen, name, entries, **settings)
        )
        self.do_start(name)

    def do_start(self, name="gateway"):
        self.programs[name] = self.started[name]()

    def do_drain(self, name="gateway"):
        assert self.programs[name].drain() == 0

    def do_kill(self, name="gateway"):
        self.programs[name].__exit__()

    def do_freeze(self, name="gateway"):
        self.programs[name].freeze()

    def do_thaw(self, name="gateway"):
        self.programs[name].thaw()

    def do_pause(self, seconds):
        """The outage or the silence itself, not a wait for something to happen."""
        time.sleep(seconds)

    def do_relay(self, name="relay", to=("gateway",)):
        relay = Relay(*(self.programs[target].address for target in to))
        self.programs[name] = self.exits.enter_context(relay)

    def do_cut(self, name="relay"):
        self.programs[name].cut()

    def do_envoy(self, name="envoy", to="gateway", **options):
        self.programs[name] = self.exits.enter_context(Envoy(self.folder, self.programs[to].address, **options))

    def do_nginx(self, name="nginx", to="gateway"):
        nginx = Nginx(self.folder, self.programs[to].address, server=code_of_the_docs("nginx"))
        self.programs[name] = self.exits.enter_context(nginx)

    # Credentials

    def do_certificates(self):
        """Writes ca.crt, and server and client with .crt and .key."""
        self.authority = Authority()
        (self.folder / "ca.crt").write_bytes(self.authority.pem)
        write(self.folder, "server", self.authority.issue())
        write(self.folder, "client", self.authority.issue("orders.example.com"))

    def do_new_certificate(self, gateway="gateway"):
        pair = self.authority.issue()
        write(self.folder, "server", pair)

        def served():
            context = ssl.create_default_context(cadata=self.authority.pem.decode())
            context.load_cert_chain(self.folder / "client.crt", self.folder / "client.key")
            context.set_alpn_protocols(["h2"])
            host, port = self.programs[gateway].address.rsplit(":", 1)
            with socket.create_connection((host, int(port))) as plain, context.wrap_socket(plain, server_hostname=host) as tls:
                return ssl.DER_cert_to_PEM_cert(tls.getpeercert(binary_form=True)) == pair[0].decode()

        wait_until(served, "the new certificate")

    def do_file(self, name, text):
        """Writes a file at once, as Kubernetes does."""
        new = self.folder / f"{name}.new"
        new.write_text(text)
        new.rename(self.folder / name)

    def do_issuer(self):
        """Makes an issuer of JSON Web Tokens, and writes its keys to keys.json."""
        self.issuer = Issuer()
        self.do_file("keys.json", self.issuer.key_set())

    def do_token(self, file, subject, seconds):
        """Writes a token that the gateway accepts for so many seconds, to a file with a line break at its end."""
        self.do_file(file, self.issuer.token(subject, seconds) + "\n")

    # The driver

    def do_client(self, name="client", target="gateway", **config):
        target = self.programs[target].address if target in self.programs else target
        config = {"target": target, "plaintext": "ca_file" not in config, **self.fill(config)}
        driver = Driver(self.folder, name, self.language, config)
        self.exits.callback(driver.kill)
        assert driver.take(None) == {"event": "ready"}
        self.drivers[name] = driver

    def do_close(self, client="client"):
        self.drivers.pop(client).close()

    def command(self, client, id, **command):
        self.driver_of[id] = self.drivers[client]
        self.driver_of[id].send(id=id, **command)

    def do_order(self, id, key=None, devices=1, client="client", count=0, **options):
        for one in listing(id, count):
            # Orders with the same key have the same devices, unless the step lists its devices.
            name = one if key is None else key
            listed = devices if isinstance(devices, list) else self.devices.setdefault(name, self.new_devices(devices))
            self.ordered[one] = listed
            options = {"account": ACCOUNT, "timeout_seconds": PATIENCE, **options}
            self.command(client, one, do="order", key=name, devices=listed, **options)

    def new_devices(self, count):
        first = sum(len(devices) for devices in self.devices.values()) + 1
        return [{"eid": f"{number:032}", "iccid": f"89148000{number:012}"} for number in range(first, first + count)]

    def do_watch(self, id, request, client="client", count=0, continues=None, after=-1, **options):
        """Watches. It continues another watch `after` so many of its updates, or after the last."""
        for number, one in enumerate(listing(id, count), 1):
            self.watched[one] = Watched(self.watched[continues].history[after] if continues else None)
            options = {"account": ACCOUNT, **self.fill(options)}
            self.command(client, one, do="watch", request_id=self.request_id(request, number), **options)

    def request_id(self, request, number=1):
        """The request of an order, or of the one with this number among several; else the text is an id itself."""
        event = self.last.get(request) or self.last.get(f"{request}{number}")
        return event["request_id"] if event else request

    def do_cancel(self, id, count=0):
        for one in listing(id, count):
            self.driver_of[one].send(do="cancel", id=one)
            while (event := self.driver_of[one].take(one))["event"] != "cancelled":
                self.watched[one].apply(event)

    def do_resources(self, client="client", back=False):
        """Remembers what the driver uses, or waits until it uses no more than that again."""

        def count():
            self.drivers[client].send(do="resources")
            return self.drivers[client].take(None)["count"]

        if back:
            wait_until(lambda: count() <= self.numbers["resources"], f"{count()} resources, before {self.numbers['resources']}")
        else:
            self.numbers["resources"] = count()

    def do_expect(self, id, count=0, **expected):
        """Takes the next event of an order or a watch."""
        for one in listing(id, count):
            event = self.driver_of[one].take(one)
            if event["event"] in ("snapshot", "change"):
                self.watched[one].apply(event)
            assert matches(expected, event), f"{Driver.text(event)} instead"
            self.last.setdefault(one, {}).update(event)

    def do_until(self, id, **expected):
        """Takes updates of a watch until one that matches."""
        event = {}
        while not matches(expected, event):
            event = self.driver_of[id].take(id)
            assert event["event"] in ("snapshot", "change"), f"{Driver.text(event)} instead"
            self.watched[id].apply(event)

    def do_follow(self, id, count=0, state=None):
        """Takes all updates of a watch and its end. The last update has this state."""
        for one in listing(id, count):
            while (event := self.driver_of[one].take(one))["event"] in ("snapshot", "change"):
                self.watched[one].apply(event)
            assert event["event"] == "end", f"{Driver.text(event)} instead of the end"
            assert self.watched[one].state == state, f"the last state is {self.watched[one].state}"

    # ThingSpace, operators, and what can be seen of the gateway

    def do_fault(self, times=1, **fault):
        self.simulator.send("POST", "/faults", times=times, **fault)

    def do_finish(self, request, device=None, outcome="success", count=0):
        """Finishes the requests of orders, or one device of a request, counted from 1."""
        for number in range(1, count + 1) if count else [1]:
            devices = self.ordered[f"{request}{number}" if count else request]
            iccid = devices[device - 1]["iccid"] if device else None
            self.simulator.finish(self.request_id(request, number), iccid, outcome)

    def do_orders(self, count):
        """Waits until ThingSpace has taken so many orders. More fail."""
        wait_until(lambda: len(self.simulator.happened()["orders"]) >= count, f"{count} orders")
        assert len(self.simulator.happened()["orders"]) == count

    def do_downloads(self, count):
        """Waits until ThingSpace has got so many calls for orders."""
        wait_until(lambda: self.simulator.happened()["calls"]["download"] >= count, f"{count} calls")

    def do_settle(self, gateway="gateway"):
        """Waits for the unknown order, and settles it as the last order that ThingSpace has taken."""

        def operate(*arguments):
            socket = self.folder / (f"{gateway}.sock" if "nats" in self.programs else f"{gateway}.redb.sock")
            return subprocess.run([GATEWAY, *arguments, "--socket", socket, "--json"], capture_output=True, text=True, timeout=PATIENCE)

        (order,) = wait_until(lambda: json.loads(operate("orders", "unknown").stdout or "[]"), "the unknown order")
        request_id = self.simulator.happened()["orders"][-1]["request_id"]
        settle = ["orders", "settle", order["order_id"], "--request-id", request_id]
        # The gateway asks ThingSpace first, which may need a login.
        wait_until(lambda: operate(*settle).returncode == 0, "the settlement")

    def do_metric(self, name, value=None, at_least=None, gateway="gateway", label=""):
        """Waits until a metric of a gateway has a value, in sum over its labels or of those with one label."""

        def now():
            lines = fetch(f"http://{self.programs[gateway].admin}/metrics").splitlines()
            return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}[{{ ]", line) and label in line)

        def reached():
            return now() == value if at_least is None else now() >= at_least

        wait_until(reached, f"{name} {label}")
        assert reached(), f"{name} {label} is {now()}"

    def do_files(self, folder, count):
        """Waits until a folder has so many files."""
        wait_until(lambda: len(list((self.folder / folder).iterdir())) == count, f"{count} files in {folder}")

    def metric(self, name, gateway):
        lines = fetch(f"http://{self.programs[gateway].admin}/metrics").splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))

    def do_connections(self, count, name="relay"):
        """Waits until so many connections of a relay are open."""
        relay = self.programs[name]
        wait_until(lambda: len(relay.open) == count, f"{count} connections, there are {len(relay.open)}")

    def do_goaways(self, at_least, name="relay"):
        relay = self.programs[name]
        wait_until(lambda: relay.goaways >= at_least, "GOAWAY")
