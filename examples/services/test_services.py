"""The services. The variable LANGUAGES has the languages, whose clients clients/LANGUAGE/check has built."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SERVICES = Path(__file__).parent
sys.path.insert(0, str(SERVICES.parent.parent / "tests" / "clients"))

from harness import ACCOUNT, GATEWAY, PATIENCE, Gateway, Program, Simulator, environment, wait_until

# The simulator fails the download of an ICCID that ends with 8.
DEVICES = [("89049032007008882600086299134038", "89148000004292933820"), ("89049032123451234512345678901235", "89148000000842590078")]
LINES = "".join(f"{eid} {iccid}\n" for eid, iccid in DEVICES)


@pytest.fixture(params=os.environ.get("LANGUAGES", "go java python typescript").split())
def language(request):
    return request.param


class Service(Program):
    """A service that gets two devices, and waits for more until its input ends."""

    def __init__(self, folder, language, target):
        (folder / "data").mkdir(exist_ok=True)
        command = [SERVICES / language / "start", target, ACCOUNT, folder / "data"]
        super().__init__(folder, "service", command, stdin=subprocess.PIPE)
        self.process.stdin.write(LINES.encode())
        self.process.stdin.flush()

    def results(self):
        """Ends the input, and returns what the service has printed when it has all results."""
        self.process.stdin.close()
        assert self.process.wait(PATIENCE) == 0, self.log.read_text()
        return self.log.read_text().splitlines()


def test_a_service_continues_after_it_was_killed(language, tmp_path):
    with Simulator(tmp_path) as simulator, Gateway(tmp_path, simulator) as gateway:
        simulator.orders_end("pending")
        # The answer to the second order comes after the service was killed.
        for milliseconds in (0, 3000):
            simulator.fault("download", {"delay": {"milliseconds": milliseconds}})
        with Service(tmp_path, language, gateway.address) as service:
            service.find("( ordered)")
            wait_until(lambda: simulator.happened()["calls"]["download"] == 2, "both calls")
        orders = wait_until(lambda: len(orders := simulator.happened()["orders"]) == 2 and orders, "both orders")
        for order in orders:
            simulator.finish(order["request_id"], outcome="success" if order["devices"] == [DEVICES[0][0]] else "failed")
        with Service(tmp_path, language, gateway.address) as service:
            assert {f"{DEVICES[0][1]} done: SUCCEEDED", f"{DEVICES[1][1]} done: FAILED"} <= set(service.results())
        assert len(simulator.happened()["orders"]) == 2


def test_the_script_runs_gateway_and_service(language, tmp_path):
    command, variables = [SERVICES / "run", language, tmp_path], environment(GATEWAY=str(GATEWAY))
    done = subprocess.run(command, input=LINES, env=variables, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done
    assert {f"{DEVICES[0][1]} done: SUCCEEDED", f"{DEVICES[1][1]} done: FAILED"} <= set(done.stdout.splitlines())
