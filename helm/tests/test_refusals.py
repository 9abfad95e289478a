"""The chart and the gateway's `check` refuse the same values: those of refusals.yaml, and values beyond each bound.

A bound that only one of them has fails a test here."""

import sys
import tomllib

import pytest
import yaml
from conftest import HELM, example, refusal, release
from test_config import GATEWAY, KEY_SET, lay_out, run_check

sys.path.insert(0, str(HELM))
import generate

CASES = yaml.safe_load((HELM / "tests" / "refusals.yaml").read_text())
BY_CHECK = [case for case in CASES if "check" in case]


def name(case) -> str:
    return yaml.safe_dump(case["over"], default_flow_style=True).strip()


@pytest.mark.parametrize("case", CASES, ids=name)
def test_the_chart_refuses(case):
    told = refusal(example(case.get("base", "embedded"), case["over"]))
    assert case["chart"] in told, told
    # Messages never contain a secret.
    if "templates" in told:
        assert "hidden" not in told, told


@pytest.mark.parametrize("case", BY_CHECK, ids=name)
def test_check_refuses(case, tmp_path):
    told = check_over(case.get("base", "embedded"), case["over"], tmp_path)
    assert told.returncode == 78 and case["check"] in told.stderr, told.stderr
    assert "hidden" not in told.stderr, told.stderr


def toml(table: dict, path: str = "") -> str:
    """Formats a configuration as TOML. Scalars are written as in JSON."""
    import json

    def is_sections(value) -> bool:
        return isinstance(value, list) and any(isinstance(item, dict) for item in value)

    scalars = {key: value for key, value in table.items() if not isinstance(value, dict) and not is_sections(value)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in scalars.items()]
    for key, value in table.items():
        if isinstance(value, dict):
            here = f"{path}.{key}" if path else key
            lines += [f"[{here}]", toml(value, here)]
        for entry in value if is_sections(value) else []:
            here = f"{path}.{key}" if path else key
            lines += [f"[[{here}]]", *(f"{key} = {json.dumps(value)}" for key, value in entry.items())]
    return "\n".join(lines)


def deep(base: dict, over: dict) -> dict:
    return {**base, **{k: deep(base.get(k, {}), v) if isinstance(v, dict) else v for k, v in over.items()}}


def check_over(base: str, over: dict, root):
    """Runs `check` on an example's configuration, overridden by values as in the chart."""
    file = lay_out(release(example(base)), root)
    config = deep(tomllib.loads(file.read_text()), over.get("config", {}))
    for section in ("grpc", "admin"):
        if port := over.get(section, {}).get("port"):
            config[section]["listen"] = f"0.0.0.0:{port}"
    nats = over.get("store", {}).get("nats", {})
    config["store"].setdefault("nats", {}).update({key: nats[key] for key in ("url",) if key in nats})
    if nats.get("tls", {}).get("existingSecret") == "":
        del config["store"]["nats"]["ca_file"]
    tls = over.get("grpc", {}).get("tls", {})
    if tls.get("existingSecret") == "":
        del config["grpc"]["tls_cert_file"], config["grpc"]["tls_key_file"]
    if tls.get("clientCa", {}).get("existingConfigMap") == "":
        del config["grpc"]["client_ca_file"]
    auth, values = config.setdefault("auth", {}), over.get("auth", {})
    if values.get("tokens", {}).get("existingSecret") == "":
        auth.pop("tokens_file", None)
    if "allow" in values:
        auth["allow"] = values["allow"]
    if name := values.get("jwt", {}).get("keySet", {}).get("existingConfigMap"):
        (root / name).write_text(KEY_SET)
        auth.setdefault("jwt", {})["jwks_file"] = str(root / name)
    if "credentials" in over:
        files = {key: config["credentials"][0][key] for key in ("key_file", "secret_file", "username_file", "password_file")}
        config["credentials"] = [{"name": c["name"], "accounts": c["accounts"], **files} for c in over["credentials"]]
    file.write_text(toml(config))
    return run_check(file)


def set_to(key: str, value) -> dict:
    for part in reversed(key.split(".")):
        value = {part: value}
    return {"config": value}


def beyond(key: str) -> list:
    """Values just outside of a key's bounds."""
    least, most = generate.BOUNDS[key]
    if isinstance(least, str):
        milliseconds = [_milliseconds(least) - 1] if not least[0].isalpha() else []
        return [f"{ms}ms" for ms in [*milliseconds, _milliseconds(most) + 1] if ms >= 0]
    return [least - 1, most + 1]


def within(key: str) -> list:
    least, most = generate.BOUNDS[key]
    return [bound for bound in (least, most) if not (isinstance(bound, str) and bound[0].isalpha())]


def _milliseconds(text: str) -> int:
    units = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
    number = text.rstrip("msdh")
    return int(number) * units[text[len(number) :]]


@pytest.mark.parametrize("key", generate.BOUNDS)
def test_bounds_are_the_same_everywhere(key, tmp_path):
    for n, value in enumerate(beyond(key)):
        over = set_to(key, value)
        told = refusal(example("embedded", over))
        assert key in told or key.replace(".", "/") in told or key.rsplit(".", 1)[1] in told, told
        told = check_over("embedded", over, tmp_path / f"beyond-{n}")
        assert told.returncode == 78 and key in told.stderr, (value, told.stderr)
    for n, value in enumerate(within(key)):
        told = check_over("embedded", set_to(key, value), tmp_path / f"within-{n}").stderr
        assert not any(line.startswith(f"{key}:") for line in told.splitlines()), (value, told)


def test_no_key_of_the_gateway_is_without_a_bound():
    """Otherwise only the pod would refuse a wrong number."""

    def leaves(table, path=()):
        for key, value in table.items():
            yield from leaves(value, (*path, key)) if isinstance(value, dict) else [(".".join((*path, key)), value)]

    for key, default in leaves(generate.defaults()):
        if isinstance(default, bool) or key in generate.CHOICES:
            continue
        if isinstance(default, (int, float)) or generate.is_duration(default):
            assert key in generate.BOUNDS, key
    assert GATEWAY.exists()


def test_defaults_fit_each_other():
    """The grace period covers the drain, and the drain covers an order."""
    defaults = generate.defaults()
    seconds = {key: _milliseconds(defaults[s][key]) // 1000 for s, key in [("grpc", "drain"), ("thingspace", "order_timeout"), ("thingspace", "connect_timeout")]}
    assert seconds["drain"] - 5 >= seconds["order_timeout"] + seconds["connect_timeout"]
    spec = release(example("embedded")).pod["spec"]
    assert spec["terminationGracePeriodSeconds"] >= 10 + seconds["drain"] + 10
