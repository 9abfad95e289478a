#!/usr/bin/env python3
"""Generates parts of the chart from other files. With `--check` it only reports parts that are not current.

- The table of values in the chart's README.md, from the comments in values.yaml that begin with "# --".
- The `config` part of values.schema.json, from the gateway's defaults in src/config.default.toml and the bounds below.
- The chart's files/bounds.json, from the same: checks for templates/_validate.tpl that a schema cannot express.
- The chart's files/dashboard.json, from the panels in dashboard.py.

tests/test_refusals.py tests that the bounds are those of `thingspace-gateway check`.
"""

import json
import re
import sys
import tomllib
from pathlib import Path

import yaml

import dashboard

HELM = Path(__file__).parent
CHART = HELM / "thingspace-gateway"
DEFAULTS = HELM.parent / "src" / "config.default.toml"

BEGIN, END = "<!-- values: made by helm/generate.py -->\n", "<!-- /values -->\n"

# The keys that the chart sets itself: see templates/_config.tpl.
OF_THE_CHART = {
    "grpc": ["listen", "tls_cert_file", "tls_key_file", "client_ca_file"],
    "auth": ["tokens_file"],
    "auth.jwt": ["jwks_file", "jwks_ca_file", "jwks_token_file"],
    "admin": ["listen"],
    "callbacks": ["enabled", "listen", "tls_cert_file", "tls_key_file", "username_file", "password_file"],
    "control": ["socket"],
    "store": ["kind", "path"],
    "store.nats": ["url", "creds_file", "username_file", "password_file", "ca_file", "cert_file", "key_file"],
}

# A subset of the gateway's notation that the templates can parse.
DURATION = "^[0-9]{1,9}(ms|s|m|h|d)( [0-9]{1,9}(ms|s|m|h|d))*$"

# The bounds of each number and duration. A lower bound can be the value of another key.
BOUNDS = {
    "grpc.heartbeat": ("100ms", "5m"),
    "grpc.max_deadline": ("1s", "10m"),
    "grpc.drain": ("1s", "10m"),
    "grpc.max_concurrent_streams": (1, 100_000),
    "grpc.max_connections": (1, 1_000_000),
    "grpc.max_connections_per_address": (1, 1_000_000),
    "grpc.connection_age": ("10s", "24h"),
    "grpc.connection_grace": ("1s", "1h"),
    "grpc.stream_age": ("10s", "24h"),
    "grpc.receive_timeout": ("1s", "5m"),
    "grpc.max_request_bytes": (16 << 20, 16 << 30),
    "thingspace.connect_timeout": ("100ms", "1m"),
    "thingspace.call_timeout": ("100ms", "5m"),
    "thingspace.order_timeout": ("100ms", "10m"),
    "thingspace.login_backoff_first": ("100ms", "1h"),
    "thingspace.login_backoff_max": ("thingspace.login_backoff_first", "24h"),
    "thingspace.calls_per_second": (1, 10_000),
    "thingspace.max_connections": (4, 10_000),
    "thingspace.breaker_failures": (1, 100),
    "thingspace.breaker_first": ("10ms", "1m"),
    "thingspace.breaker_max": ("thingspace.breaker_first", "5m"),
    "thingspace.max_devices_per_order": (1, 10_000),
    "callbacks.grace": ("0s", "5m"),
    "callbacks.password_grace": ("0s", "30d"),
    "callbacks.recheck": ("1s", "24h"),
    "store.retention": ("1h", "365d"),
    "store.nats.max_bytes": (16 << 20, 16 << 40),
    "polling.min_age": ("0s", "1h"),
    "polling.first": ("10ms", "1h"),
    "polling.factor": (1, 10),
    "polling.max_watched": ("polling.first", "24h"),
    "polling.max": ("polling.max_watched", "24h"),
    "polling.give_up": ("polling.max", "30d"),
    "telemetry.trace_ratio": (0, 1),
    "limits.open_devices": (1, 10_000_000),
    "limits.closed_bytes": (1 << 20, 16 << 30),
    "limits.closed_in_memory": ("0s", "24h"),
    "limits.caller_calls_per_second": (1, 1_000_000),
    "limits.caller_watches": (1, 1_000_000),
    "limits.caller_open_devices": (1, 10_000_000),
}

# URLs are logged and written to a ConfigMap, so they must not hold a secret.
HOST = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_]([-A-Za-z0-9_.]*[A-Za-z0-9_.])?)"
PORT = r"(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?"
CALLED_PORT = r"(:(80|443|900[1-6]|5055[1-9]|282([01][0-9]|20)))?"
OCTET = r"(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])"
IPV4_NETWORK = rf"({OCTET}\.){{3}}{OCTET}/([12]?[0-9]|3[0-2])"
IPV6_NETWORK = r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*/([1-9]?[0-9]|1[01][0-9]|12[0-8])"
NETWORK = rf"({IPV4_NETWORK}|{IPV6_NETWORK})"
PATH = r"(/[^\s?#]*)?"
# A path that no proxy rewrites: no segment is empty or consists of dots only.
PLAIN_PATH = r"(/|(/[.]*[-A-Za-z0-9_~][-A-Za-z0-9_.~]*)+/?)?"

STRINGS = {
    "thingspace.base_url": rf"^https?://{HOST}{PORT}{PATH}$",
    "thingspace.token_url": rf"^(https?://{HOST}{PORT}{PATH})?$",
    "thingspace.proxy_url": rf"^(http://{HOST}{PORT}{PATH})?$",
    "auth.jwt.jwks_url": rf"^(https?://{HOST}{PORT}{PATH})?$",
    "callbacks.public_url": rf"^(https?://{HOST}{CALLED_PORT}{PLAIN_PATH})?$",
    "callbacks.networks": rf"^ *({NETWORK}( *, *{NETWORK})*)? *$",
    "callbacks.service": "^[A-Za-z0-9]{1,64}$",
    "store.nats.prefix": "^[-_a-z0-9]{1,32}$",
    "telemetry.log_format": "^(text|json)$",
    "grpc.client_cert": "^(optional|required)$",
    # Directives, separated by commas: TARGET[SPAN]=LEVEL; each part is optional.
    "telemetry.log_filter": r"^(%(one)s(,%(one)s)*)?$"
    % {"one": r"[^,=\[\]{}\s]*(\[[^\]]*\])?(=(?i:trace|debug|info|warn|error|off|[0-5]))?"},
    "telemetry.otlp_protocol": "^(grpc|http)$",
    "telemetry.otlp_signals": "^ *(traces|metrics|logs)( *, *(traces|metrics|logs))* *$",
    "telemetry.trace_sampler": "^(orders|always_on|always_off|traceidratio|parentbased_(always_on|always_off|traceidratio))$",
    "telemetry.otlp_endpoint": rf"^(https?://{HOST}{PORT}{PATH})?$",
}
CHOICES = {"store.nats.replicas": [1, 3, 5]}


def documented(text: str):
    """Yields (path, comment) for each value with a comment."""
    path, comment = [], []
    for line in text.splitlines():
        if match := re.match(r"\s*# ?(-- )?(.*)", line):
            comment = [match[2]] if match[1] else comment + [match[2]] if comment else []
        elif match := re.match(r"( *)([A-Za-z]+):", line):
            path = path[: len(match[1]) // 2] + [match[2]]
            if comment:
                yield list(path), " ".join(comment)
            comment = []
        else:
            comment = []


def leaf(values: dict, path: list[str]):
    for key in path:
        values = values[key]
    return values


def undocumented(values: dict, known: list[list[str]], path=()) -> list[str]:
    """Returns the values without a comment on them or on a map around them."""
    missing = []
    for key, value in values.items():
        here = [*path, key]
        if here in known:
            continue
        if isinstance(value, dict) and value:
            missing += undocumented(value, known, here)
        else:
            missing.append(".".join(here))
    return missing


def table() -> str:
    text = (CHART / "values.yaml").read_text()
    values, rows = yaml.safe_load(text), list(documented(text))
    if missing := undocumented(values, [path for path, _ in rows]):
        sys.exit(f"values.yaml: no comment that begins with '# --': {', '.join(missing)}")
    lines = ["| value | default | |", "|---|---|---|"]
    for path, comment in rows:
        default = json.dumps(leaf(values, path), separators=(", ", ": "))
        default, comment = (cell.replace("|", "\\|") for cell in (default, comment))
        lines.append(f"| `{'.'.join(path)}` | `{default}` | {comment} |")
    return "\n".join(lines) + "\n"


def readme(text: str) -> str:
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + table() + END + after


def is_duration(value) -> bool:
    return isinstance(value, str) and bool(re.match(DURATION, value))


def schema_of_key(key: str, default) -> dict:
    if key in CHOICES:
        return {"enum": CHOICES[key]}
    if is_duration(default):
        return {"type": "string", "pattern": DURATION}
    if isinstance(default, str):
        return {"type": "string", **({"pattern": STRINGS[key]} if key in STRINGS else {})}
    if isinstance(default, bool):
        return {"type": "boolean"}
    least, most = BOUNDS[key]
    return {"type": "integer" if isinstance(default, int) else "number", "minimum": least, "maximum": most}


def schema_of(table: dict, path: str = "") -> dict:
    properties = {}
    for key, value in table.items():
        here = f"{path}.{key}" if path else key
        if key in OF_THE_CHART.get(path, []):
            continue
        if isinstance(value, dict):
            inner = schema_of(value, here)
            if inner["properties"]:
                properties[key] = inner
        else:
            properties[key] = schema_of_key(here, value)
    return {"type": "object", "additionalProperties": False, "properties": properties}


def defaults() -> dict:
    return tomllib.loads(DEFAULTS.read_text())


def schema(text: str) -> str:
    whole = json.loads(text)
    whole["properties"]["config"] = schema_of(defaults())
    return json.dumps(whole, indent=2) + "\n"


def bounds(_text: str) -> str:
    """Returns the bounds of durations, and the environment variables that would override keys of the chart."""
    durations = {}
    for key, (least, most) in BOUNDS.items():
        default = leaf(defaults(), key.split("."))
        if is_duration(default):
            durations[key] = {"default": default, "least": least, "most": most}
    chart = [f"{section}.{key}" for section, keys in OF_THE_CHART.items() for key in keys]
    taken = [*chart, "grpc.drain", "grpc.max_request_bytes", "limits.open_devices"]
    variables = ["THINGSPACE_GATEWAY__" + key.replace(".", "__").upper() for key in taken]
    # The URL of the servers may come from a Secret.
    variables.remove("THINGSPACE_GATEWAY__STORE__NATS__URL")
    grpc = defaults()["grpc"]
    used = {
        "max_request_bytes": grpc["max_request_bytes"],
        "open_devices": defaults()["limits"]["open_devices"],
        "reflection": grpc["reflection"],
    }
    return json.dumps({"durations": durations, "variables": variables, "defaults": used}, indent=2) + "\n"


def main() -> None:
    stale = []
    made = {"README.md": readme, "values.schema.json": schema, "files/bounds.json": bounds, "files/dashboard.json": lambda _: dashboard.text()}
    for name, made_from in made.items():
        file = CHART / name
        before = file.read_text() if file.exists() else ""
        after = made_from(before)
        if before != after:
            stale.append(name)
            if "--check" not in sys.argv:
                file.parent.mkdir(exist_ok=True)
                file.write_text(after)
    if stale and "--check" in sys.argv:
        sys.exit(f"not current: {', '.join(stale)}; run `make chart`")


if __name__ == "__main__":
    main()
