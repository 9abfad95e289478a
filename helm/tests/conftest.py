"""Shared by the chart's tests: Helm in two versions, the examples, and the objects of a release."""

import copy
import os
import subprocess
from pathlib import Path

import pytest
import yaml

HELM = Path(__file__).parent.parent
CHART = HELM / "thingspace-gateway"
REPOSITORY = HELM.parent
TOOLS = REPOSITORY / "target" / "chart-tools"
EXAMPLES = sorted((HELM / "examples").glob("*.yaml"))
KUBERNETES = ["1.30", "1.33", "1.37"]

if not (TOOLS / "bin" / "helm4").exists():
    pytest.exit("the tools are missing: run `make chart-tools`", returncode=1)


def run(*command, stdin: str = "") -> subprocess.CompletedProcess:
    environment = {**os.environ, "HELM_CACHE_HOME": "/nonexistent", "HELM_CONFIG_HOME": "/nonexistent"}
    return subprocess.run([str(part) for part in command], input=stdin, env=environment, capture_output=True, text=True, timeout=120)


def helm(*arguments, values: dict | None = None, version: str = "4") -> subprocess.CompletedProcess:
    from_stdin = [] if values is None else ["--values", "-"]
    return run(TOOLS / "bin" / f"helm{version}", *arguments, *from_stdin, stdin=yaml.safe_dump(values))


def merged(base, over):
    """Merges values as Helm does: maps key by key; everything else is replaced."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return copy.deepcopy(over)
    return {**copy.deepcopy(base), **{key: merged(base.get(key), value) for key, value in over.items()}}


def example(name: str, over: dict | None = None) -> dict:
    return merged(yaml.safe_load((HELM / "examples" / f"{name}.yaml").read_text()), over or {})


class Release(list):
    """The objects of a release."""

    def of(self, kind: str, suffix: str = "") -> dict:
        (found,) = [it for it in self if it["kind"] == kind and it["metadata"]["name"] == f"gw-thingspace-gateway{suffix}"]
        return found

    def kinds(self) -> list[str]:
        return sorted(it["kind"] for it in self)

    @property
    def workload(self) -> dict:
        (found,) = [it for it in self if it["kind"] in ("StatefulSet", "Deployment")]
        return found

    @property
    def pod(self) -> dict:
        return self.workload["spec"]["template"]

    @property
    def container(self) -> dict:
        (found,) = self.pod["spec"]["containers"]
        return found

    @property
    def toml(self) -> str:
        return self.of("ConfigMap")["data"]["gateway.toml"]


def template(values: dict, *arguments, version: str = "4") -> subprocess.CompletedProcess:
    return helm("template", "gw", CHART, "--namespace", "esim", *arguments, values=values, version=version)


def release(values: dict, version: str = "4") -> Release:
    rendered = template(values, version=version)
    assert rendered.returncode == 0, rendered.stderr
    return Release(it for it in yaml.safe_load_all(rendered.stdout) if it)


def refusal(values: dict) -> str:
    rendered = template(values)
    assert rendered.returncode != 0, "it is not refused"
    return rendered.stderr
