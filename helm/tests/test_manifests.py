"""The rendered examples: the same in both versions of Helm, valid for Kubernetes, and accepted by the security scanners."""

import json
import sys

import pytest
import yaml
from conftest import CHART, EXAMPLES, HELM, KUBERNETES, REPOSITORY, TOOLS, example, helm, release, run, template

NAMES = [file.stem for file in EXAMPLES]
ACCEPTED = yaml.safe_load((HELM / "tests" / "accepted.yaml").read_text())


@pytest.fixture(scope="session", params=NAMES)
def rendered(request, tmp_path_factory):
    """A file with the manifests of an example."""
    told = template(example(request.param))
    assert told.returncode == 0, told.stderr
    file = tmp_path_factory.mktemp(request.param) / "all.yaml"
    file.write_text(told.stdout)
    return file


@pytest.mark.parametrize("version", ["3", "4"])
@pytest.mark.parametrize("values", [None, *(example(name) for name in NAMES)], ids=["defaults", *NAMES])
def test_lint(version, values):
    told = helm("lint", "--strict", CHART, values=values, version=version)
    assert told.returncode == 0 and "WARNING" not in told.stdout, told.stdout + told.stderr


@pytest.mark.parametrize("name", NAMES)
def test_helm_3_and_4_make_the_same(name):
    assert release(example(name), version="3") == release(example(name), version="4")


@pytest.mark.parametrize("minor", KUBERNETES)
def test_kubernetes_takes_it(rendered, minor):
    validate = [sys.executable, "-m", "kubernetes_validate", "--strict", "-k", minor, rendered]
    told = run(*validate)
    assert told.returncode == 0, told.stdout + told.stderr


def test_a_wrong_field_would_be_seen(tmp_path):
    wrong = release(example("embedded"))
    wrong.container["lifecycle"]["preStop"]["nap"] = {"seconds": 1}
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump_all(list(wrong)))
    told = run(sys.executable, "-m", "kubernetes_validate", "--strict", "-k", KUBERNETES[0], file)
    assert told.returncode != 0 and "nap" in told.stdout + told.stderr


def test_an_older_kubernetes_is_refused():
    told = template(example("embedded"), "--kube-version", "1.29.0")
    assert told.returncode != 0 and "kubeVersion" in told.stderr
    for minor in KUBERNETES:
        assert template(example("embedded"), "--kube-version", f"{minor}.0").returncode == 0


def finding(identifier: str, about: str) -> str:
    return f"{identifier} test" if "thingspace-gateway-test" in about else identifier


def trivy(path) -> set[str]:
    options = ["--quiet", "--skip-check-update", "--skip-version-check", "--format", "json"]
    told = run(TOOLS / "bin" / "trivy", "config", *options, path)
    assert told.returncode == 0, told.stderr
    results = json.loads(told.stdout).get("Results", [])
    assert results, "nothing was looked at"
    return {finding(it["ID"], it["Message"]) for result in results for it in result.get("Misconfigurations", [])}


def checkov(path) -> set[str]:
    main = f"import sys; sys.path[:0] = [{str(TOOLS / 'checkov')!r}]; import checkov.main as m; m.Checkov(sys.argv[1:]).run()"
    options = ["--quiet", "--compact", "--framework", "kubernetes", "--skip-download", "-o", "json"]
    told = run(sys.executable, "-c", main, *options, "-f", path)
    report = json.loads(told.stdout)
    assert report["summary"]["passed"] > 50, "next to nothing was looked at"
    return {finding(it["check_id"], it["resource"]) for it in report["results"]["failed_checks"]}


def test_policies_find_nothing_unexplained(rendered):
    found = {"trivy": trivy(rendered), "checkov": checkov(rendered)}
    unexplained = {tool: ids - ACCEPTED[tool].keys() for tool, ids in found.items()}
    assert not any(unexplained.values()), unexplained
    # An entry for a finding that no longer exists is an error.
    needless = {tool: ACCEPTED[tool].keys() - ids for tool, ids in found.items()}
    assert not any(needless.values()), needless


def test_a_risk_would_be_seen(tmp_path):
    risky = release(example("embedded"))
    risky.container["securityContext"]["privileged"] = True
    file = tmp_path / "risky.yaml"
    file.write_text(yaml.safe_dump_all(list(risky)))
    assert trivy(file) - ACCEPTED["trivy"].keys() and checkov(file) - ACCEPTED["checkov"].keys()


def test_the_dockerfile():
    told = run(TOOLS / "bin" / "hadolint", REPOSITORY / "Dockerfile")
    assert told.returncode == 0, told.stdout
    assert trivy(REPOSITORY / "Dockerfile") == ACCEPTED["dockerfile"].keys()
