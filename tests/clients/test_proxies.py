"""Envoy and nginx between gRPC for Python and the gateway, with HTTP/2 in plain text and with TLS behind them.

Everything works with their defaults, except where docs/clients.md names a setting: the tests set exactly these.
"""

import concurrent.futures
import signal
import time

import grpc
import pytest
from certificates import Authority, write
from harness import ACCOUNT, PATIENCE, Gateway, Simulator, Stub, channel, details, message, reason, wait_until
from proxies import Envoy, Nginx

FRONTS = {"envoy": (Envoy, False), "envoy-tls": (Envoy, True), "nginx": (Nginx, False), "nginx-tls": (Nginx, True)}


def with_certificate(folder):
    cert, key = write(folder, "server", Authority().issue())
    return {"tls_cert_file": cert, "tls_key_file": key}


class Front:
    """A gateway behind a proxy, and a channel to the proxy. Requests stay open until a test finishes them."""

    def __init__(self, proxy, folder, simulator, gateway, tls=False, **options):
        self.simulator, self.gateway = simulator, gateway
        self.proxy = proxy(folder, gateway.address, tls=tls, **options)
        self.channel = channel(self.proxy.address)
        self.stub = Stub(self.channel)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()
        self.proxy.__exit__()


@pytest.fixture(scope="module")
def simulator(tmp_path_factory):
    with Simulator(tmp_path_factory.mktemp("simulator")) as simulator:
        simulator.orders_end("pending")
        yield simulator


@pytest.fixture(scope="module", params=FRONTS.values(), ids=FRONTS.keys())
def front(request, tmp_path_factory, simulator):
    proxy, tls = request.param
    folder = tmp_path_factory.mktemp("front")
    with Gateway(folder, simulator, grpc=with_certificate(folder) if tls else {}) as gateway:
        with Front(proxy, folder, simulator, gateway, tls) as front:
            yield front


@pytest.fixture(params=[Envoy, Nginx], ids=["envoy", "nginx"])
def proxy(request):
    return request.param


def failure(call):
    with pytest.raises(grpc.RpcError) as failed:
        call()
    return failed.value


def status_request(request_id):
    return message("GetRequestStatusRequest")(account_name=ACCOUNT, request_id=request_id)


def test_orders_and_status_calls(front):
    placed = front.stub.order(key="one order")
    assert not placed.replayed
    again = front.stub.order(key="one order")
    assert (again.request_id, again.replayed) == (placed.request_id, True)
    seen = front.stub.status(placed.request_id)
    assert front.stub.status(placed.request_id, wait=1, after_revision=seen.revision).revision == seen.revision
    with concurrent.futures.ThreadPoolExecutor() as threads:
        poll = threads.submit(front.stub.status, placed.request_id, wait=10, after_revision=seen.revision)
        front.simulator.finish(placed.request_id)
        assert poll.result(PATIENCE).counts.succeeded == 1


def test_a_watch_ends_with_its_request(front):
    request_id = front.stub.order().request_id
    watch = front.stub.watch(request_id)
    kinds = [next(watch).WhichOneof("event") for _ in range(3)]
    assert kinds == ["snapshot", "heartbeat", "heartbeat"]
    front.simulator.finish(request_id, outcome="failed")
    *_, last = watch
    assert last.change.counts.failed == 1
    assert watch.code() == grpc.StatusCode.OK


def test_errors_keep_their_details(front):
    wrong = failure(lambda: front.stub.order(devices=[{"eid": "1", "iccid": "2"}] * 42))
    assert (wrong.code(), reason(wrong)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert details(wrong)["BadRequest"].field_violations[0].field == "devices[0].eid"
    unknown = failure(lambda: front.stub.status("11111111-1111-1111-1111-111111111111"))
    assert (unknown.code(), reason(unknown)) == (grpc.StatusCode.NOT_FOUND, "REQUEST_NOT_FOUND")
    watch = front.stub.watch("11111111-1111-1111-1111-111111111111")
    assert reason(failure(lambda: next(watch))) == "REQUEST_NOT_FOUND"


def test_a_call_ends_at_its_deadline_and_is_repeated_with_its_key(front):
    front.simulator.fault("download", {"delay": {"milliseconds": 1500}})
    # On a slow machine the library's own timer may be first, so that there is no reason.
    assert failure(lambda: front.stub.order(key="late", timeout=0.7)).code() == grpc.StatusCode.DEADLINE_EXCEEDED
    placed = front.stub.order(key="late").request_id
    again = front.stub.order(key="late")
    assert (again.request_id, again.replayed) == (placed, True)


def test_a_cancelled_watch_ends_at_the_gateway(proxy, tmp_path, simulator):
    with Gateway(tmp_path, simulator, limits={"caller_watches": 1}) as gateway, Front(proxy, tmp_path, simulator, gateway) as front:
        request_id = front.stub.order().request_id
        first = front.stub.watch(request_id)
        next(first)
        refused = failure(lambda: next(front.stub.watch(request_id)))
        assert (refused.code(), reason(refused)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        first.cancel()

        def admitted():
            try:
                return next(front.stub.watch(request_id))
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED

        wait_until(admitted, "the place of the cancelled watch")


def test_large_messages_are_refused(proxy, tmp_path, simulator):
    options = {"server": "client_max_body_size 8m;"} if proxy is Nginx else {}
    with Gateway(tmp_path, simulator) as gateway, Front(proxy, tmp_path, simulator, gateway, **options) as front:
        large = failure(lambda: front.stub.order(devices=[{"eid": "1" * (5 << 20), "iccid": "2"}]))
        assert reason(large) == "MESSAGE_TOO_LARGE", large
        assert front.stub.order().request_id


def test_large_headers_are_refused(tmp_path, simulator):
    """Envoy lets them pass to the gateway. nginx does not, and ends the connection."""
    with Gateway(tmp_path, simulator) as gateway, Front(Envoy, tmp_path, simulator, gateway) as front:
        large = failure(lambda: front.stub.order(metadata=[("x-large", "a" * 20_000)]))
        assert (large.code(), reason(large)) == (grpc.StatusCode.OUT_OF_RANGE, "MESSAGE_TOO_LARGE")
        assert front.stub.order().request_id


def test_an_order_of_10000_devices_passes(proxy, tmp_path, simulator):
    """With all identifiers it has 0.8 MB. nginx accepts 1 MiB."""
    devices = [
        {"eid": f"{number:032}", "iccid": f"8914800000{number:010}", "imei": f"{number:015}"}
        for number in range(10_000)
    ]
    with Gateway(tmp_path, simulator) as gateway, Front(proxy, tmp_path, simulator, gateway) as front:
        placed = front.stub.order(devices=devices)
        seen = 0
        for message in front.stub.watch(placed.request_id):
            seen += len(message.snapshot.devices)
            if not message.more:
                break
        assert seen == len(devices)


def test_calls_above_the_streams_of_a_connection_wait(tmp_path, simulator):
    """nginx allows 128. Another channel has a connection of its own."""
    with Gateway(tmp_path, simulator) as gateway, Front(Nginx, tmp_path, simulator, gateway) as front:
        request_id = front.stub.order().request_id
        watches = [front.stub.watch(request_id) for _ in range(128)]
        for watch in watches:
            next(watch)
        waiting = front.stub.GetRequestStatus.future(status_request(request_id), timeout=PATIENCE)
        with channel(front.proxy.address) as other:
            assert Stub(other).status(request_id).request_id
        assert not waiting.done()
        watches[0].cancel()
        assert waiting.result(PATIENCE).status.request_id


def test_heartbeats_keep_an_idle_watch_open(proxy, tmp_path, simulator):
    """The time-outs for silence are 60 s (nginx) and 5 minutes (Envoy) by default, and the heartbeat 25 s: here all are shorter."""
    options = {"location": "grpc_read_timeout 4s;"} if proxy is Nginx else {"timeout": "0s", "idle_timeout": "4s"}
    with Gateway(tmp_path, simulator, grpc={"heartbeat": "500ms"}) as gateway, channel(gateway.address) as direct:
        request_id = Stub(direct).order().request_id
        with Front(proxy, tmp_path, simulator, gateway, **options) as front:
            watch = front.stub.watch(request_id)
            begin = time.monotonic()
            for message in watch:
                if time.monotonic() - begin > 6:
                    break
            assert message.WhichOneof("event") == "heartbeat"
            watch.cancel()


def test_timeouts_of_one_caller_end_no_watch_of_another(tmp_path, simulator):
    """Envoy sends the calls of all callers through one connection. The time-outs reset 250 streams of it at once."""
    with Gateway(tmp_path, simulator) as gateway, Front(Envoy, tmp_path, simulator, gateway, timeout="0s") as front:
        request_id = front.stub.order().request_id
        watches = [front.stub.watch(request_id) for _ in range(20)]
        for watch in watches:
            next(watch)
        with channel(front.proxy.address) as other:
            status, request = Stub(other).GetRequestStatus, status_request(request_id)
            gateway.signal(signal.SIGSTOP)
            calls = [status.future(request, timeout=0.1) for _ in range(250)]
            # The calls have ended before the gateway goes on.
            ends = [call.code() for call in calls]
            gateway.signal(signal.SIGCONT)
        assert set(ends) == {grpc.StatusCode.DEADLINE_EXCEEDED}
        for watch in watches:
            for _ in range(2):
                assert next(watch).WhichOneof("event") == "heartbeat"
            assert watch.is_active()
        assert front.stub.status(request_id).request_id
