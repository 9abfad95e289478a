"""The gateway itself looks at what the chart renders: `check`, with files where the pod would have them."""

import os
import subprocess
from pathlib import Path

import pytest
from conftest import EXAMPLES, REPOSITORY, example, release

TARGET = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
GATEWAY = TARGET / "debug" / "thingspace-gateway"


def lay_out(it, root: Path, secrets: dict | None = None, prefix: str | None = None) -> Path:
    """What the container would see of its volumes, under another root; the configuration's file in it.

    The configuration names files under `prefix`: there where they are, unless something else is said."""
    prefix = str(root) if prefix is None else prefix
    mounts = {mount["name"]: root / mount["mountPath"].lstrip("/") for mount in it.container["volumeMounts"]}
    for path in mounts.values():
        path.mkdir(parents=True)
    (config,) = [volume for volume in it.pod["spec"]["volumes"] if volume["name"] == "config"]
    for source in config["projected"]["sources"]:
        secret = source.get("secret")
        for item in (secret or source["configMap"])["items"]:
            file = mounts["config"] / item["path"]
            assert not file.exists(), f"two sources of {item['path']}"
            file.parent.mkdir(parents=True, exist_ok=True)
            content = (secrets or {}).get(file.name, "secret\n")
            file.write_text(content if secret else it.toml.replace('= "/', f'= "{prefix}/'))
    return mounts["config"] / "gateway.toml"


def check(it, root: Path) -> subprocess.CompletedProcess:
    file = lay_out(it, root)
    environment = {"PATH": ""}
    for variable in it.container.get("env", []):
        environment[variable["name"]] = variable.get("value", "nats://from-a-secret:4222")
    command = [GATEWAY, "check", "--config", file]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


CASES = [(file.stem, {}) for file in EXAMPLES] + [
    ("embedded", {"bindAddress": "[::]"}),
    # Whole numbers, large ones, fractions, quotes and lists survive the way through YAML.
    (
        "embedded",
        {"config": {
            "limits": {"open_devices": 10000000},
            "polling": {"factor": 2, "max": "1h 30m"},
            "thingspace": {"strict_checksums": True, "calls_per_second": 10000},
            "telemetry": {"log_filter": 'info,thingspace_gateway[{name="<a & b>"}]=debug'},
        }},
    ),
    ("embedded", {"config": {"polling": {"factor": 1.25}}}),
    ("callbacks", {"callbacks": {"existingSecret": "pair"}}),
    ("callbacks", {"callbacks": {"tls": {"existingSecret": ""}}}),
    ("nats", {"store": {"nats": {"url": "", "urlKey": "url"}}}),
    ("nats", {"store": {"nats": {"url": "nats://a", "existingSecret": "", "tls": {"existingSecret": ""}}}}),
    ("nats", {"store": {"nats": {"tls": {"certKey": "tls.crt", "keyKey": "tls.key"}}}}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "over"), CASES, ids=[f"{name} {over}" for name, over in CASES])
def test_the_gateway_takes_what_the_chart_renders(name, over, tmp_path):
    told = check(release(example(name, over)), tmp_path)
    assert told.returncode == 0, told.stderr
    for section in (over.get("config") or {}).values():
        for key, value in section.items():
            assert f"{key} = " in told.stdout, (key, value)


def test_numbers_are_what_they_were(tmp_path):
    over = {"limits": {"open_devices": 10000000}, "polling": {"factor": 2}, "grpc": {"max_concurrent_streams": 100000}}
    toml = release(example("embedded", {"config": over})).toml
    assert "open_devices = 10000000\n" in toml and "factor = 2\n" in toml and "max_concurrent_streams = 100000\n" in toml


def test_what_the_gateway_refuses_is_seen_here(tmp_path):
    told = check(release(example("embedded", {"config": {"polling": {"factor": 99}}})), tmp_path)
    assert told.returncode == 78 and "polling.factor" in told.stderr
