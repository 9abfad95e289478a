"""The bill of materials of a release."""

import json
import subprocess

import pytest
from conftest import ROOT

TRIVY = ROOT / "target" / "chart-tools" / "bin" / "trivy"


@pytest.fixture(scope="module")
def document():
    told = subprocess.run([ROOT / ".ci" / "sbom", "a revision"], check=True, capture_output=True, text=True, timeout=300)
    return told.stdout


def test_it_lists_what_is_in_the_image_and_nothing_else(document):
    bill = json.loads(document)
    names = {component["name"] for component in bill["components"]}
    assert {"tokio", "rustls", "serde_derive", "glibc", "rust-std"} <= names
    # Tests, build scripts and other systems use these.
    assert not {"test-support", "rcgen", "tonic-prost-build", "windows-sys", "thingspace-gateway"} & names
    for component in bill["components"]:
        assert component["licenses"] and component["version"], component
    assert bill["metadata"]["component"]["name"] == "thingspace-gateway"
    references = {component["bom-ref"] for component in [*bill["components"], bill["metadata"]["component"]]}
    named = {reference for entry in bill["dependencies"] for reference in [entry["ref"], *entry["dependsOn"]]}
    assert len(references) == len(bill["components"]) + 1 and named <= references


def test_the_same_commit_makes_the_same_document(document):
    again = subprocess.run([ROOT / ".ci" / "sbom", "a revision"], check=True, capture_output=True, text=True, timeout=300)
    assert again.stdout == document


def test_a_scanner_reads_it(document, tmp_path):
    file = tmp_path / "bill.cdx.json"
    file.write_text(document)
    options = ["--quiet", "--offline-scan", "--skip-db-update", "--skip-version-check", "--scanners", "license", "--list-all-pkgs"]
    told = subprocess.run([TRIVY, "sbom", *options, "--format", "json", file], check=True, capture_output=True, text=True, timeout=300)
    (crates,) = [result for result in json.loads(told.stdout)["Results"] if result.get("Type") == "cargo"]
    listed = [component for component in json.loads(document)["components"] if component["bom-ref"].startswith("pkg:cargo/")]
    assert len(crates["Packages"]) == len(listed) + 1
