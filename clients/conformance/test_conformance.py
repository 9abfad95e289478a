"""Every scenario with the client of every language. README.md says how to run some of them only.

Scenarios mostly wait, so several run at the same time. The longest begin first.
"""

import concurrent.futures
import os
import tempfile
from pathlib import Path

import pytest
import yaml
from scenario import DRIVERS, SCENARIOS, Scenario

LANGUAGES = os.environ.get("LANGUAGES", "go java python typescript").split()
# Python has two drivers.
TESTED = [driver for driver in DRIVERS if driver.partition("_")[0] in LANGUAGES]
JOBS = int(os.environ.get("JOBS", "10"))
SECONDS = {path.stem: yaml.safe_load(path.read_text()).get("seconds", 0) for path in sorted(SCENARIOS.glob("*.yaml"))}


@pytest.fixture(scope="module")
def results(request):
    """The results of all selected tests, which run in the background."""
    items = [item.callspec.params for item in request.session.items if item.path == request.path]
    selected = [(item["scenario"], item["language"]) for item in items]
    selected.sort(key=lambda test: -SECONDS[test[0]])
    with concurrent.futures.ThreadPoolExecutor(JOBS) as pool:
        yield {test: pool.submit(run, *test) for test in selected}
        pool.shutdown(cancel_futures=True)


def run(scenario, language):
    # Sockets of Unix need short paths.
    with tempfile.TemporaryDirectory(prefix=f"{language}-") as folder:
        Scenario(scenario, language, Path(folder)).run()


@pytest.mark.parametrize("language", TESTED)
@pytest.mark.parametrize("scenario", SECONDS)
def test_conformance(scenario, language, results):
    results[scenario, language].result()
