"""Runs the gateway, the simulator and proxies for the tests, and makes stubs of the API.

Every program listens on a port that was free, keeps its files in the directory of its test, and is killed at the end. A
test waits for conditions, never for a fixed time.
"""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from pathlib import Path

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.rpc import error_details_pb2
from grpc_status import rpc_status

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TOOLS = ROOT / "target" / "tools" / "bin"
GATEWAY = ROOT / "target" / "debug" / "thingspace-gateway"
PACKAGE = "thingspace.esim.v1"
ACCOUNT = "0000123456-00001"
# How the drivers of clients/conformance start, which the scripts clients/LANGUAGE/check have built. The client for asyncio
# runs with the oldest versions of Python and its packages.
CLIENTS = ROOT / "target" / "clients"
DRIVERS = {
    "go": [CLIENTS / "go" / "conformance"],
    "java": ["java", "-jar", CLIENTS / "java" / "conformance.jar"],
    "python": [CLIENTS / "python" / "venv" / "bin" / "python", ROOT / "clients" / "python" / "conformance" / "driver.py"],
    "python_aio": [CLIENTS / "python" / "oldest" / "bin" / "python", ROOT / "clients" / "python" / "conformance" / "driver_aio.py"],
    "typescript": ["node", CLIENTS / "typescript" / "build" / "conformance" / "driver.js"],
}
DEVICE = {"eid": "89049032007008882600086299134038", "iccid": "89148000004292933820"}
# The longest wait for anything that does happen. The machine may be slow.
PATIENCE = 120

# Nothing leaves this machine.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"


def wait_until(condition, what):
    """Returns the first true result of the condition."""
    end = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < end, f"waited too long: {what}"
        time.sleep(0.02)
    return result


# In a random sequence, because other tests may run at the same time.
PORTS = iter(random.sample(range(10_000, 32_768), 22_768))


def free_port():
    """A free port that no connection gets as its own while the program that listens on it is away. Returns no port twice."""
    for port in PORTS:
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


def fetch(url, method="GET", body=None):
    request = urllib.request.Request(url, body, method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=PATIENCE) as response:
        return response.read().decode()


def environment(**more):
    """The environment of a program, which has other packages of Python than the tests."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"NO_COLOR": "1"} | more


class Program:
    """A program that runs until the end of its `with` block. Its output is in `log`."""

    def __init__(self, folder, name, command, stdin=None):
        self.log = folder / f"{name}-{uuid.uuid4().hex[:8]}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment(), cwd=folder, stdin=stdin, stdout=log, stderr=log)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def find(self, pattern):
        """Waits for a text in the output, and returns its first group."""

        def found():
            match = re.search(pattern, self.log.read_text(errors="replace"))
            assert match or self.process.poll() is None, self.log.read_text()
            return match

        try:
            return wait_until(found, f"{pattern} in {self.log}")[1]
        except AssertionError:
            self.__exit__()
            raise

    def signal(self, number):
        self.process.send_signal(number)

    def freeze(self):
        self.signal(signal.SIGSTOP)

    def thaw(self):
        self.signal(signal.SIGCONT)


class Simulator(Program):
    """The simulated ThingSpace."""

    def __init__(self, folder):
        super().__init__(folder, "simulator", [GATEWAY, "simulate", "--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"])
        self.base_url = self.find(r"base_url=\"([^\"]+)")
        self.control = self.find(r"controlled address=(\S+)")

    def send(self, method, path, **body):
        fetch(f"http://{self.control}{path}", method, json.dumps(body).encode())

    def happened(self):
        return json.loads(fetch(f"http://{self.control}/happened"))

    def orders_end(self, outcome):
        """Sets the result of later orders: "pending", "success" or "failed"."""
        self.send("PUT", "/outcome", outcome=outcome)

    def fault(self, endpoint, answer):
        """Adds a fault for the next call of an endpoint."""
        self.send("POST", "/faults", endpoint=endpoint, answer=answer, times=1)

    def finish(self, request_id, device=None, outcome="success"):
        self.send("PUT", f"/requests/{request_id}", outcome=outcome, **({"device": device} if device else {}))


class Gateway(Program):
    """A gateway in front of the simulator. `settings` are sections of the configuration; `entries` is more TOML."""

    def __init__(self, folder, simulator, listen="127.0.0.1:0", name="gateway", entries="", **settings):
        secrets = {
            "key_file": "simulator-key",
            "secret_file": "simulator-secret",
            "username_file": "simulator-user",
            "password_file": "simulator-password",
        }
        credentials = {"name": "main", "accounts": [ACCOUNT]}
        self.admin = f"127.0.0.1:{free_port()}"
        for key, secret in secrets.items():
            (folder / key).write_text(secret)
            credentials[key] = str(folder / key)
        sections = {
            "grpc": {"listen": listen, "heartbeat": "1s"},
            "admin": {"listen": self.admin},
            "thingspace": {"base_url": simulator.base_url, "calls_per_second": 10000},
            "polling": {"first": "100ms", "max_watched": "200ms", "max": "200ms", "min_age": "0s"},
            "store": {"path": str(folder / f"{name}.redb")},
            "[credentials]": credentials,
        }
        for section, keys in settings.items():
            sections[section] = {**sections.get(section, {}), **keys}
        lines = []
        for section, keys in sections.items():
            lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
        config = folder / f"{name}.toml"
        config.write_text("\n".join(lines) + f"\n{entries}\n")
        super().__init__(folder, name, [GATEWAY, "serve", "--config", config])
        self.address = self.find(r"app: listening address=(\S+)")
        self.find(r"(ready)\n")

    def drain(self):
        """Ends the gateway as Kubernetes does, and returns its exit code."""
        self.signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


class Nats(Program):
    """A NATS server with JetStream."""

    def __init__(self, folder):
        self.port = free_port()
        super().__init__(folder, "nats", [TOOLS / "nats-server", "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", folder / "nats"])
        self.find(r"(Server is ready)")

    def store(self, folder, name):
        """The sections of a gateway that keeps its store here."""
        return {
            "store": {"kind": "nats"},
            "store.nats": {"url": f"nats://127.0.0.1:{self.port}", "replicas": 1},
            "control": {"socket": str(folder / f"{name}.sock")},
        }


class Relay:
    """Forwards connections to the first of its targets that can be reached, and reads the frames of a server that speaks
    HTTP/2 without TLS.
    """

    GOAWAY = 7

    def __init__(self, *targets):
        # Cleared: it reads nothing from servers.
        self.reads = threading.Event()
        self.reads.set()
        self.targets = [(host, int(port)) for host, port in (target.rsplit(":", 1) for target in targets)]
        self.connections = 0
        self.goaways = 0
        # The connections of clients that are open.
        self.open = set()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()
        self.cut()

    def cut(self):
        """Ends all connections at once."""
        for client in list(self.open):
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def freeze(self):
        self.reads.clear()

    def thaw(self):
        self.reads.set()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            server = self.connect()
            if server is None:
                client.close()
                continue
            self.open.add(client)
            for socket_ in (client, server):
                socket_.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.forward, args=(client, server, lambda data: None), daemon=True).start()
            threading.Thread(target=self.forward, args=(server, client, self.frames()), daemon=True).start()

    def connect(self):
        for target in self.targets:
            server = socket.socket()
            # Little waits on the way while nothing is read.
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
            with contextlib.suppress(OSError):
                server.connect(target)
                return server
            server.close()

    def forward(self, source, sink, read):
        with contextlib.suppress(OSError):
            while data := source.recv(16_384):
                if source not in self.open:
                    self.reads.wait()
                read(data)
                sink.sendall(data)
        self.open -= {source, sink}
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def frames(self):
        """Returns a function that takes the bytes of one connection and counts its GOAWAY frames."""
        unread = bytearray()

        def read(data):
            unread.extend(data)
            while len(unread) >= 9 and len(unread) >= 9 + int.from_bytes(unread[:3]):
                self.goaways += unread[3] == self.GOAWAY
                del unread[: 9 + int.from_bytes(unread[:3])]

        return read


def descriptors():
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString((ROOT / "proto" / "esim.binpb").read_bytes()).file:
        pool.Add(file)
    return pool


POOL = descriptors()


def message(name):
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


class Stub:
    """The methods of the API, as a generated stub has them."""

    def __init__(self, channel):
        for method in POOL.FindServiceByName(f"{PACKAGE}.EsimService").methods:
            kind = channel.unary_stream if method.server_streaming else channel.unary_unary
            call = kind(
                f"/{PACKAGE}.EsimService/{method.name}",
                request_serializer=lambda request: request.SerializeToString(),
                response_deserializer=message(method.output_type.name).FromString,
            )
            setattr(self, method.name, call)

    def order(self, devices=(DEVICE,), key=None, **options):
        request = message("DownloadProfileRequest")(
            idempotency_key=key or str(uuid.uuid4()), account_name=ACCOUNT, service_plan="a plan", devices=devices
        )
        return self.DownloadProfile(request, **{"timeout": PATIENCE, **options})

    def status(self, request_id, wait=0, after_revision=0, timeout=PATIENCE, **options):
        request = message("GetRequestStatusRequest")(account_name=ACCOUNT, request_id=request_id, after_revision=after_revision)
        request.wait.FromSeconds(wait)
        return self.GetRequestStatus(request, timeout=timeout, **options).status

    def watch(self, request_id, token="", **options):
        return self.WatchRequest(message("WatchRequestRequest")(account_name=ACCOUNT, request_id=request_id, resume_token=token), **options)


def service_config():
    """The service config of the clients."""
    return (ROOT / "clients" / "service-config.json").read_text()


def code_of_the_docs(language):
    return re.search(rf" *```{language}\n(.*?)```", (ROOT / "docs" / "clients.md").read_text(), re.DOTALL)[1]


def channel(address, credentials=None):
    """A channel of its own, with the service config and the options of docs/clients.md."""
    options = [
        ("grpc.service_config", service_config()),
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.keepalive_time_ms", 60000),
        ("grpc.keepalive_timeout_ms", 20000),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if "," in address:
        # A list of addresses is no authority for HTTP/2.
        options.append(("grpc.default_authority", "localhost"))
    if credentials:
        return grpc.secure_channel(address, credentials, options)
    return grpc.insecure_channel(address, options)


def details(error):
    """The details of an error by the names of their types."""
    status = rpc_status.from_call(error)
    found = {}
    for detail in status.details if status else []:
        kind = getattr(error_details_pb2, detail.TypeName().rsplit(".", 1)[1])()
        detail.Unpack(kind)
        found[kind.DESCRIPTOR.name] = kind
    return found


def reason(error):
    info = details(error).get("ErrorInfo")
    return info.reason if info else ""
