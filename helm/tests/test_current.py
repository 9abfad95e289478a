"""The generated parts of the chart are current."""

import sys
import tomllib

import yaml
from conftest import CHART, HELM, REPOSITORY, run


def test_readme_and_schema_are_current():
    told = run(sys.executable, HELM / "generate.py", "--check")
    assert told.returncode == 0, told.stderr


def test_versions_are_those_of_the_gateway():
    package = tomllib.loads((REPOSITORY / "Cargo.toml").read_text())["package"]
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == package["version"]
    assert f"/rust:{package['rust-version']}." in (REPOSITORY / "Dockerfile").read_text()
