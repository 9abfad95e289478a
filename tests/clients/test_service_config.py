"""The service config of the clients, with gRPC for Python."""

import json
import threading

import grpc
import pytest
from harness import ACCOUNT, DEVICE, ROOT, Gateway, Simulator, Stub, channel, code_of_the_docs, free_port, message, service_config

# Longer than five tries without `waitForReady` take.
OUTAGE_SECONDS = 12
COPIES = [path for path in (ROOT / "clients").rglob("service-config.json") if "node_modules" not in path.parts]


@pytest.mark.parametrize("copy", COPIES, ids=lambda path: str(path.relative_to(ROOT)))
def test_all_clients_have_the_same_service_config(copy):
    assert copy.read_text() == service_config()


def test_the_documented_service_config_is_that_of_the_clients():
    assert json.loads(code_of_the_docs("json")) == json.loads(service_config())


def test_a_call_bridges_a_restart_of_the_only_replica(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    refused = threading.Event()
    with channel(address) as client:
        client.subscribe(lambda state: refused.set() if state == grpc.ChannelConnectivity.TRANSIENT_FAILURE else None)
        order = message("DownloadProfileRequest")(account_name=ACCOUNT, service_plan="a plan", idempotency_key="k", devices=[DEVICE])
        call = Stub(client).DownloadProfile.future(order)
        assert refused.wait(20), "nothing listens yet"
        # The outage itself, not a wait for something to happen.
        threading.Event().wait(OUTAGE_SECONDS)
        assert not call.done(), call.exception()
        with Simulator(tmp_path) as simulator, Gateway(tmp_path, simulator, address):
            assert call.result(timeout=60).request_id
