"""The service config of docs/clients.md, with gRPC for Python."""

import threading

import grpc
from harness import ACCOUNT, DEVICE, Gateway, Simulator, Stub, channel, free_port, message

# Longer than five tries without `waitForReady` take.
OUTAGE_SECONDS = 12


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
