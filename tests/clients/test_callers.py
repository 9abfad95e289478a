"""gRPC libraries of several languages with the service config and the watch loop of docs/clients.md: no call of theirs fails.

The variable LANGUAGES has the languages; without it, only Python's is there. The others need `make callers`.
"""

import contextlib
import os

import pytest
from harness import Callers, Gateway, Relay, Simulator, Stub, channel, code_of_the_docs, free_port
from proxies import Nginx


@pytest.fixture(params=os.environ.get("LANGUAGES", "python").split())
def language(request):
    return request.param


@pytest.fixture(scope="module")
def simulator(tmp_path_factory):
    with Simulator(tmp_path_factory.mktemp("simulator")) as simulator:
        simulator.orders_end("pending")
        yield simulator


def pending_request(gateway, **options):
    with channel(gateway.address) as direct:
        return Stub(direct).order(**options).request_id


def test_the_age_of_a_connection_fails_no_call(language, tmp_path, simulator):
    with Gateway(tmp_path, simulator, grpc={"connection_age": "10s", "connection_grace": "1s"}) as gateway:
        request_id = pending_request(gateway)
        with Relay(gateway.address) as relay, Callers(tmp_path, relay.address, request_id, language) as callers:
            callers.begin()
            assert (relay.connections, relay.goaways) == (1, 0)
            callers.resumed()
            assert relay.goaways >= 1
            assert relay.connections >= 2
            simulator.finish(request_id)
            callers.end()


@pytest.mark.parametrize("behind_nginx", [False, True], ids=["direct", "nginx"])
def test_a_restart_fails_no_call(language, behind_nginx, tmp_path, simulator):
    listen = f"127.0.0.1:{free_port()}"
    with Gateway(tmp_path, simulator, listen) as gateway, contextlib.ExitStack() as proxies:
        target = listen
        if behind_nginx:
            target = proxies.enter_context(Nginx(tmp_path, listen, server=code_of_the_docs("nginx"))).address
        request_id = pending_request(gateway)
        with Callers(tmp_path, target, request_id, language) as callers:
            callers.begin()
            assert gateway.drain() == 0
            with Gateway(tmp_path, simulator, listen):
                callers.resumed()
                simulator.finish(request_id)
                callers.end()
