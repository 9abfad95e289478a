#!/usr/bin/env python3
"""Keeps what follows from other files as they say: `helm/generate.py` writes, `helm/generate.py --check` only looks.

- The table of values in the chart's README.md, from values.yaml: the lines that begin with "# --" above a value.
- The part of values.schema.json that is about `config`, from the gateway's own defaults, src/config.default.toml.
"""

import json
import re
import sys
import tomllib
from pathlib import Path

import yaml

HELM = Path(__file__).parent
CHART = HELM / "thingspace-gateway"
DEFAULTS = HELM.parent / "src" / "config.default.toml"

BEGIN, END = "<!-- values: made by helm/generate.py -->\n", "<!-- /values -->\n"

# What the chart writes itself: see templates/_config.tpl.
OF_THE_CHART = {
    "grpc": ["listen"],
    "admin": ["listen"],
    "callbacks": ["enabled", "listen", "tls_cert_file", "tls_key_file", "username_file", "password_file"],
    "control": ["socket"],
    "store": ["kind", "path"],
    "store.nats": ["url", "creds_file", "ca_file", "cert_file", "key_file"],
}

# The template has to understand it.
DRAIN = {"type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)( [0-9]+(ms|s|m|h|d))*$"}


def documented(text: str):
    """(path, comment) of each value that has a comment of its own."""
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
    """Values whose comment is missing: of each, or of a map that holds it."""
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


def schema_of(table: dict, path: str = "") -> dict:
    properties = {}
    for key, value in table.items():
        here = f"{path}.{key}" if path else key
        if here == "grpc.drain":
            properties[key] = DRAIN
        elif key in OF_THE_CHART.get(path, []):
            continue
        elif isinstance(value, dict):
            inner = schema_of(value, here)
            if inner["properties"]:
                properties[key] = inner
        else:
            kinds = {bool: "boolean", int: "integer", float: "number", str: "string"}
            properties[key] = {"type": kinds[type(value)]}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def schema(text: str) -> str:
    whole = json.loads(text)
    whole["properties"]["config"] = schema_of(tomllib.loads(DEFAULTS.read_text()))
    return json.dumps(whole, indent=2) + "\n"


def main() -> None:
    stale = []
    for name, made_from in (("README.md", readme), ("values.schema.json", schema)):
        file = CHART / name
        before = file.read_text()
        after = made_from(before)
        if before != after:
            stale.append(name)
            if "--check" not in sys.argv:
                file.write_text(after)
    if stale and "--check" in sys.argv:
        sys.exit(f"not current: {', '.join(stale)}; run `make chart`")


if __name__ == "__main__":
    main()
