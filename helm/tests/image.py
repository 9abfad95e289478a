"""Runs the image like the pod of an example: `make image-test`. Needs podman and a built image."""

import json
import os
import shlex
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import REPOSITORY, example, release, run
from test_config import TOKEN, lay_out

PODMAN = shlex.split(os.environ.get("PODMAN", "podman"))
PODMAN_RUN = shlex.split(os.environ.get("PODMAN_RUN", ""))
IMAGE = "localhost/thingspace-gateway"
GRPCURL = REPOSITORY / "target" / "tools" / "bin" / "grpcurl"
SERVICE = "thingspace.esim.v1.EsimService"
DEADLINE = 45

# The credentials of the simulator: `thingspace-gateway simulate --help`.
SECRETS = {"key": "simulator-key", "secret": "simulator-secret", "username": "simulator-user", "password": "simulator-password"}
ACCOUNT = "0000123456-00001"
ORDER = {
    "account_name": ACCOUNT,
    "idempotency_key": "image",
    # The simulator decides by the last digit of an ICCID: this one takes long.
    "devices": [{"eid": "89049032007008882600086299134038", "iccid": "89148000004292933829"}],
}


def podman(*arguments) -> str:
    done = run(*PODMAN, *arguments)
    assert done.returncode == 0, (arguments, done.stderr)
    return done.stdout.strip()


def eventually(what: str, is_true):
    deadline = time.monotonic() + DEADLINE
    while not is_true():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.05)


class Pod:
    """A simulator and a gateway in two containers of the same image, with a common network."""

    def __init__(self, root: Path):
        simulator = {"base_url": "http://thingspace.test:8090/api", "allow_plaintext": True}
        config = {"thingspace": simulator, "grpc": {"allow_plaintext": True, "reflection": True}}
        self.it = release(example("embedded", {"config": config, "grpc": {"tls": {"existingSecret": ""}}}))
        lay_out(self.it, root, SECRETS, prefix="")
        for mount in self.it.container["volumeMounts"]:
            for path in [root / mount["mountPath"][1:], *(root / mount["mountPath"][1:]).rglob("*")]:
                os.chown(path, 65532, 65532)
        self.root, self.grace = root, self.it.pod["spec"]["terminationGracePeriodSeconds"]
        ports = ["--publish", "127.0.0.1::50051", "--publish", "127.0.0.1::9464"]
        resolved = ["--add-host", "thingspace.test:127.0.0.1"]
        self.simulator = podman("run", "--detach", *PODMAN_RUN, *ports, *resolved, IMAGE, "simulate", "--listen", "127.0.0.1:8090")
        self.gateway = ""

    def start(self):
        """The options of podman that correspond to the pod's specification."""
        context = {**self.it.pod["spec"]["securityContext"], **self.it.container["securityContext"]}
        assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"] and context["capabilities"] == {"drop": ["ALL"]}
        options = ["--read-only", "--read-only-tmpfs=false", "--security-opt", "no-new-privileges", "--cap-drop", "all"]
        options += ["--user", f"{context['runAsUser']}:{context['runAsGroup']}", "--memory", self.it.container["resources"]["limits"]["memory"][:-1]]
        for mount in self.it.container["volumeMounts"]:
            path = mount["mountPath"]
            options += ["--volume", f"{self.root}{path}:{path}:{'ro' if mount.get('readOnly') else 'rw'}"]
        network = ["--network", f"container:{self.simulator}"]
        self.gateway = podman("run", "--detach", *PODMAN_RUN, *options, *network, IMAGE, *self.it.container["args"])
        eventually("it is ready", lambda: self.probe("readyz") == "ready\n")

    def published(self, port: int) -> str:
        return podman("port", self.simulator, str(port))

    def probe(self, path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://{self.published(9464)}/{path}", timeout=5) as answer:
                return answer.read().decode()
        except OSError as error:
            return str(error)

    def call(self, method: str, request: dict) -> subprocess.Popen:
        command = [GRPCURL, "-plaintext", "-H", f"authorization: Bearer {TOKEN}", "-d", json.dumps(request), self.published(50051), f"{SERVICE}/{method}"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def answer(self, method: str, request: dict) -> dict:
        out, err = self.call(method, request).communicate(timeout=DEADLINE)
        assert out, err
        return json.loads(out)

    def refusal(self, method: str, request: dict) -> str:
        out, err = self.call(method, request).communicate(timeout=DEADLINE)
        assert not out, out
        return err

    def stop(self):
        podman("stop", "--time", str(self.grace), self.gateway)
        assert podman("inspect", "--format", "{{.State.ExitCode}}", self.gateway) == "0"
        podman("rm", self.gateway)
        self.gateway = ""

    def remove(self):
        for container in filter(None, [self.gateway, self.simulator]):
            run(*PODMAN, "rm", "--force", "--time", "0", container)


@pytest.fixture
def pod(tmp_path):
    pod = Pod(tmp_path)
    yield pod
    pod.remove()


def test_there_is_nothing_else_in_it():
    (image,) = json.loads(podman("image", "inspect", IMAGE))
    config = image["Config"]
    assert config["User"] == "65532:65532" and config["Entrypoint"] == ["/thingspace-gateway"]
    assert not config.get("ExposedPorts") and not config.get("Volumes")
    container = podman("create", *PODMAN_RUN, IMAGE)
    try:
        listed = subprocess.run([*PODMAN, "export", container], capture_output=True, check=True, timeout=DEADLINE)
        names = subprocess.run(["tar", "--list"], input=listed.stdout, capture_output=True, check=True, timeout=DEADLINE)
    finally:
        podman("rm", container)
    files = {name for name in names.stdout.decode().split() if not name.endswith("/")}
    # Files that podman creates in every container.
    files -= {"etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab", "run/.containerenv", "dev/console"}
    assert files == {"thingspace-gateway", "etc/ssl/certs/ca-certificates.crt", "LICENSE"}


def test_it_runs_as_the_chart_says(pod):
    pod.start()
    pid = podman("inspect", "--format", "{{.State.Pid}}", pod.gateway)
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    assert status["Uid"].split() == ["65532"] * 4 and status["Gid"].split() == ["65532"] * 4
    assert [int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")] == [0] * 4
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"

    assert pod.probe("livez") == "alive\n"
    assert "is ready" in podman("exec", pod.gateway, "/thingspace-gateway", "health", "--address", "localhost:50051")
    config = "/etc/thingspace-gateway/gateway.toml"
    assert "ready" in podman("exec", pod.gateway, "/thingspace-gateway", "status", "--config", config)

    order = pod.answer("DownloadProfile", ORDER)
    question = {"account_name": ACCOUNT, "request_id": order["requestId"]}
    assert pod.answer("GetRequestStatus", question)["status"]["counts"] == {"total": 1, "pending": 1}
    watch = pod.call("WatchRequest", question)
    assert '"snapshot"' in watch.stdout.readline() + watch.stdout.readline()

    began = time.monotonic()
    podman("stop", "--time", str(pod.grace), pod.gateway)
    assert time.monotonic() - began < pod.grace
    assert podman("inspect", "--format", "{{.State.ExitCode}}", pod.gateway) == "0"
    _, told = watch.communicate(timeout=DEADLINE)
    assert "Unavailable" in told and "DRAINING" in told
    log = run(*PODMAN, "logs", pod.gateway)
    assert "drained" in log.stdout + log.stderr

    # It still knows the request.
    podman("rm", pod.gateway)
    pod.start()
    assert pod.answer("DownloadProfile", ORDER) == {"requestId": order["requestId"], "replayed": True}


def test_a_replaced_secret_needs_no_restart(pod):
    """docs/operations.md, "Rotate credentials": the kubelet replaces the files while the pod runs."""
    password = pod.root / "etc/thingspace-gateway/credentials/main/password"
    password.write_text("wrong\n")
    pod.start()
    assert "UPSTREAM_CREDENTIALS_REJECTED" in pod.refusal("DownloadProfile", ORDER)
    # A new store assumes one rejected login, and a password is not used again after two.
    eventually("logins stop", lambda: "UPSTREAM_LOGIN_BLOCKED" in pod.refusal("DownloadProfile", ORDER))
    password.write_text(f"{SECRETS['password']}\n")
    # The gateway reads the files from time to time.
    eventually("the right password is used", lambda: "requestId" in pod.call("DownloadProfile", ORDER).communicate(timeout=DEADLINE)[0])


def test_a_restored_backup_forgets_keys(pod):
    """docs/operations.md, "Back up" and "Restore": a copy of a stopped gateway's file is restored later."""
    store = pod.root / "var/lib/thingspace-gateway/store.redb"
    pod.start()
    before = pod.answer("DownloadProfile", ORDER)
    pod.stop()
    copy = store.read_bytes()
    pod.start()
    later = {**ORDER, "idempotency_key": "later"}
    lost = pod.answer("DownloadProfile", later)
    pod.stop()

    store.write_bytes(copy)
    pod.start()
    assert pod.answer("DownloadProfile", ORDER) == {**before, "replayed": True}
    # Requests from after the backup can be queried, but their orders must not be repeated.
    status = pod.answer("GetRequestStatus", {"account_name": ACCOUNT, "request_id": lost["requestId"]})["status"]
    assert status["requestId"] == lost["requestId"]
    assert pod.answer("DownloadProfile", later)["requestId"] != lost["requestId"]
