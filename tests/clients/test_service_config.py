"""The service config of docs/clients.md, with gRPC for Python."""

import contextlib
import threading

import grpc
from harness import ACCOUNT, DEVICE, Callers, Gateway, Nats, Simulator, Stub, channel, free_port, message

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


def test_a_rolling_restart_of_two_replicas_fails_no_call(tmp_path):
    names = ("one", "two")
    addresses = [f"127.0.0.1:{free_port()}" for _ in names]
    with Simulator(tmp_path) as simulator, Nats(tmp_path) as nats, contextlib.ExitStack() as gateways:
        simulator.orders_end("pending")

        def start(number):
            store = nats.store(tmp_path, names[number])
            return gateways.enter_context(Gateway(tmp_path, simulator, addresses[number], names[number], **store))

        replicas = [start(0), start(1)]
        with channel(addresses[0]) as client:
            request_id = Stub(client).order().request_id
        with Callers(tmp_path, f"ipv4:{','.join(addresses)}", request_id) as callers:
            callers.begin()
            for number in (0, 1):
                assert replicas[number].drain() == 0
                callers.more_calls()
                start(number)
            callers.resumed()
            simulator.finish(request_id)
            callers.end()
