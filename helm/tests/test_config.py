"""The gateway's `check` accepts what the chart renders, with files where the pod would have them."""

import functools
import hashlib
import json
import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from conftest import EXAMPLES, REPOSITORY, example, release

TARGET = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
GATEWAY = TARGET / "debug" / "thingspace-gateway"


TOKEN = "the token of a caller"
TOKENS = "# Callers.\norders " + hashlib.sha256(TOKEN.encode()).hexdigest() + "\n"
# A public key (RFC 8037, appendix A.2).
KEY_SET = json.dumps({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "one", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]})


def lay_out(it, root: Path, secrets: dict | None = None, prefix: str | None = None) -> Path:
    """Creates the container's files under another root, and returns the configuration file.

    The configuration names the files under `prefix`, by default where they are."""
    prefix = str(root) if prefix is None else prefix
    mounts = {mount["name"]: root / mount["mountPath"].lstrip("/") for mount in it.container["volumeMounts"]}
    for path in mounts.values():
        path.mkdir(parents=True)
    (config,) = [volume for volume in it.pod["spec"]["volumes"] if volume["name"] == "config"]
    for source in config["projected"]["sources"]:
        ((kind, of),) = source.items()
        for item in [of] if kind == "serviceAccountToken" else of["items"]:
            file = mounts["config"] / item["path"]
            assert not file.exists(), f"two sources of {item['path']}"
            file.parent.mkdir(parents=True, exist_ok=True)
            # The authority of the test's certificate is the certificate itself.
            known = {"client-ca.crt": certificate()["ca.crt"], "gateway.toml": it.toml.replace('= "/', f'= "{prefix}/'), "tokens": TOKENS, "jwks.json": KEY_SET}
            content = {**known, **certificate(), **(secrets or {})}
            file.write_text(content.get(file.name, f"secret of {file.parent.name}\n"))
    return mounts["config"] / "gateway.toml"


def check(it, root: Path) -> subprocess.CompletedProcess:
    file = lay_out(it, root)
    environment = {}
    for variable in it.container.get("env", []):
        environment[variable["name"]] = variable.get("value", "tls://from-a-secret:4222")
    return run_check(file, environment)


def run_check(file: Path, environment: dict | None = None) -> subprocess.CompletedProcess:
    command = [GATEWAY, "check", "--config", file]
    environment = {"PATH": "", **(environment or {})}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@functools.cache
def certificate() -> dict:
    """A valid certificate and its key, under the names of the pod's files."""
    with tempfile.TemporaryDirectory() as folder:
        key, cert = Path(folder) / "key", Path(folder) / "cert"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2"]
        subprocess.run([*command, "-subj", "/CN=gateway.example.com"], check=True, capture_output=True, timeout=60)
        return {"tls.crt": cert.read_text(), "tls.key": key.read_text(), "ca.crt": cert.read_text()}


CASES = [(file.stem, {}) for file in EXAMPLES] + [
    ("embedded", {"bindAddress": "[::]"}),
    # Whole numbers, large ones, fractions, quotes and lists survive the conversion through YAML.
    (
        "embedded",
        {"config": {
            "limits": {"open_devices": 200000},
            "polling": {"factor": 2, "max": "1h 30m"},
            "thingspace": {"strict_checksums": True, "calls_per_second": 10000},
            "telemetry": {"log_filter": 'info,thingspace_gateway[{name="<a & b>"}]=debug'},
        }},
    ),
    ("embedded", {"config": {"polling": {"factor": 1.25}}}),
    ("embedded", {"auth": {"tokens": {"existingSecret": "", "existingConfigMap": "hashes", "key": "callers.txt"}}}),
    ("embedded", {"auth": {"tokens": {"existingSecret": ""}, "allow": []}, "config": {"grpc": {"allow_unauthenticated_remote_callers": True}}}),
    (
        "embedded",
        {
            "auth": {"jwt": {"keySet": {"existingConfigMap": "keys"}}},
            "config": {"auth": {"jwt": {"issuer": "https://a", "audience": "gateway"}}},
        },
    ),
    ("embedded", {"grpc": {"tls": {"existingSecret": ""}}, "config": {"grpc": {"allow_plaintext": True}}}),
    ("embedded", {"grpc": {"tls": {"clientCa": {"existingSecret": "ca", "key": "bundle.pem"}}}}),
    ("callbacks", {"config": {"grpc": {"client_cert": "required"}}, "helmTest": {"enabled": False}}),
    ("callbacks", {"auth": {"jwt": {"ca": {"existingConfigMap": "ca"}}}}),
    ("callbacks", {"callbacks": {"existingSecret": "pair"}}),
    ("callbacks", {"callbacks": {"tls": {"existingSecret": ""}}}),
    ("nats", {"store": {"nats": {"url": "", "urlKey": "url"}}}),
    ("nats", {"store": {"nats": {"url": "tls://a", "existingSecret": "", "tls": {"existingSecret": ""}}}}),
    (
        "nats",
        {
            "store": {"nats": {"url": "nats://a", "existingSecret": "", "tls": {"existingSecret": ""}}},
            "config": {"store": {"nats": {"allow_plaintext": True}}},
        },
    ),
    ("nats", {"store": {"nats": {"credsKey": "", "usernameKey": "user", "passwordKey": "pass"}}}),
    ("nats", {"store": {"nats": {"tls": {"certKey": "tls.crt", "keyKey": "tls.key"}}}}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "over"), CASES, ids=[f"{name} {over}" for name, over in CASES])
def test_the_gateway_takes_what_the_chart_renders(name, over, tmp_path):
    told = check(release(example(name, over)), tmp_path)
    assert told.returncode == 0, told.stderr
    for section in (over.get("config") or {}).values():
        for key, value in section.items():
            if isinstance(value, dict):
                continue
            assert f"{key} = " in told.stdout, (key, value)


def test_numbers_are_what_they_were(tmp_path):
    over = {"limits": {"open_devices": 10000000}, "polling": {"factor": 2}, "grpc": {"max_concurrent_streams": 100000}}
    toml = release(example("embedded", {"config": over, "resources": {"limits": {"memory": "64Gi"}}})).toml
    assert "open_devices = 10000000\n" in toml and "factor = 2\n" in toml and "max_concurrent_streams = 100000\n" in toml


def test_what_the_gateway_refuses_is_seen_here(tmp_path):
    file = lay_out(release(example("embedded")), tmp_path)
    file.write_text(file.read_text() + "\n[polling]\nfactor = 99\n")
    told = run_check(file)
    assert told.returncode == 78 and "polling.factor" in told.stderr
