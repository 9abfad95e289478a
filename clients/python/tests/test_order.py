import asyncio
import threading
import uuid
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from calls import ACCOUNT, DEVICE, Calls
from peer import Code, Peer, accepted, error, silence
from programs import PATIENCE, Dev

from thingspace_gateway import GatewayError, UnknownOutcomeError, aio, connect, insecure

UNKNOWN = error(Code.FAILED_PRECONDITION, "ORDER_OUTCOME_UNKNOWN", orderId="order-7")
THROTTLED = error(Code.RESOURCE_EXHAUSTED, "UPSTREAM_THROTTLED", retry_delay=0.01)
REFUSED = error(Code.INVALID_ARGUMENT, "UPSTREAM_INVALID_INPUT")


def ends_with(expected: "type[GatewayError]", calls: Calls, peer: Peer, *answers: Any, timeout: float = 30) -> Any:
    """Orders from a peer with these answers. Returns the error."""
    peer.answers = list(answers)
    with pytest.raises(GatewayError) as raised:
        calls.order(peer.target, timeout=timeout)
    assert type(raised.value) is expected
    assert isinstance(raised.value.__cause__, grpc.RpcError)
    return raised.value


def test_an_order_is_placed_and_a_repetition_finds_it(calls: Calls, dev: Dev) -> None:
    key = str(uuid.uuid4())
    first = calls.order(dev.target, key)
    second = calls.order(dev.target, key)
    assert (first.replayed, second.replayed) == (False, True)
    assert first.request_id == second.request_id


def test_an_error_of_the_gateway_lists_the_fields_that_are_wrong(calls: Calls, dev: Dev) -> None:
    with pytest.raises(GatewayError) as raised:
        calls.order(dev.target, key="")
    explanation = raised.value.explanation
    assert (explanation.code, explanation.reason) == (Code.INVALID_ARGUMENT, "INVALID_FIELD")
    assert [violation.field for violation in explanation.violations] == ["idempotency_key"]


def test_an_order_is_repeated_with_its_key_until_it_is_accepted(calls: Calls, peer: Peer) -> None:
    peer.answers = [
        THROTTLED,
        error(Code.FAILED_PRECONDITION, "ORDER_OUTCOME_UNKNOWN", retry_delay=0),
        error(Code.UNAVAILABLE, "ORDER_IN_PROGRESS", retry_delay=0),
        error(Code.INTERNAL),
        accepted("request-2"),
    ]
    assert calls.order(peer.target, "the-key").request_id == "request-2"
    requests = [call.request for call in peer.calls]
    assert requests[0].idempotency_key == "the-key"
    assert requests == [requests[0]] * 5


def test_an_order_waits_as_long_as_the_gateway_says(calls: Calls, peer: Peer) -> None:
    peer.answers = [error(Code.RESOURCE_EXHAUSTED, "OVERLOADED", retry_delay=1.5), accepted()]
    calls.order(peer.target)
    assert peer.calls[1].time - peer.calls[0].time >= 1.5


def test_an_attempt_has_at_most_90_seconds(calls: Calls, peer: Peer) -> None:
    remaining = []

    def answer(context: Any) -> Any:
        remaining.append(context.time_remaining())
        return accepted()(context)

    peer.answers = [answer]
    calls.order(peer.target)
    calls.order(peer.target, timeout=20)
    # gRPC rounds up what it sends.
    assert 20 < remaining[0] < 91
    assert remaining[1] < 21


def test_a_refusal_is_not_repeated(calls: Calls, peer: Peer) -> None:
    failure = ends_with(GatewayError, calls, peer, REFUSED)
    assert failure.explanation.reason == "UPSTREAM_INVALID_INPUT"
    assert len(peer.calls) == 1


def test_an_unknown_outcome_at_the_end_of_the_time_names_the_order(calls: Calls, peer: Peer) -> None:
    failure = ends_with(UnknownOutcomeError, calls, peer, UNKNOWN, timeout=2)
    assert (failure.account, failure.idempotency_key) == (ACCOUNT, "a-key")
    assert (failure.order_id, failure.request_id) == ("order-7", "")
    assert failure.explanation.reason == "ORDER_OUTCOME_UNKNOWN"
    assert len(peer.calls) > 1


def test_an_order_without_an_answer_has_an_unknown_outcome(calls: Calls, peer: Peer) -> None:
    failure = ends_with(UnknownOutcomeError, calls, peer, silence, timeout=0.5)
    assert failure.explanation.code == Code.DEADLINE_EXCEEDED


def test_an_internal_error_of_the_gateway_is_an_unknown_outcome_at_once(calls: Calls, peer: Peer) -> None:
    failure = ends_with(UnknownOutcomeError, calls, peer, error(Code.INTERNAL, "INTERNAL", log_id="log-1"))
    assert failure.explanation.log_id == "log-1"
    assert len(peer.calls) == 1


@pytest.mark.parametrize(
    "last",
    [
        error(Code.UNAVAILABLE, "UPSTREAM_UNAVAILABLE", retry_delay=60),
        error(Code.RESOURCE_EXHAUSTED, "UPSTREAM_THROTTLED", retry_delay=60),
        REFUSED,
    ],
    ids=["unavailable", "throttled", "refused"],
)
def test_an_answer_after_the_key_was_looked_up_settles_earlier_doubts(calls: Calls, peer: Peer, last: Any) -> None:
    ends_with(GatewayError, calls, peer, error(Code.UNKNOWN), last)
    assert len(peer.calls) == 2


@pytest.mark.parametrize(
    "last",
    [
        error(Code.UNAVAILABLE, "DRAINING", retry_delay=60),
        error(Code.RESOURCE_EXHAUSTED, "OVERLOADED", retry_delay=60),
        error(Code.DEADLINE_EXCEEDED, "DEADLINE", retry_delay=60, nothingSent="true"),
        error(Code.UNAUTHENTICATED, "CALLER_UNAUTHENTICATED"),
        error(Code.PERMISSION_DENIED),
    ],
    ids=["draining", "overloaded", "nothing sent", "unauthenticated", "proxy"],
)
def test_an_answer_before_the_key_is_looked_up_settles_nothing(calls: Calls, peer: Peer, last: Any) -> None:
    ends_with(UnknownOutcomeError, calls, peer, error(Code.UNKNOWN), last)


@pytest.mark.parametrize(
    "only",
    [
        error(Code.UNAVAILABLE, "DRAINING", retry_delay=60),
        error(Code.DEADLINE_EXCEEDED, "DEADLINE", retry_delay=60, nothingSent="true"),
        error(Code.RESOURCE_EXHAUSTED, "STORE_FULL", retry_delay=60),
    ],
    ids=["draining", "nothing sent", "store full"],
)
def test_an_order_that_was_never_sent_is_an_error_of_the_gateway(calls: Calls, peer: Peer, only: Any) -> None:
    failure = ends_with(GatewayError, calls, peer, only)
    assert failure.explanation.safe_to_repeat
    assert len(peer.calls) == 1, "the next attempt would be too late"


@pytest.mark.parametrize("answer", [silence, error(Code.RESOURCE_EXHAUSTED, "OVERLOADED", retry_delay=60)])
@pytest.mark.parametrize("by", ["event", "close"])
def test_another_thread_cancels_an_order(peer: Peer, answer: Any, by: str) -> None:
    peer.answers = [answer]
    cancel = threading.Event()
    with ThreadPoolExecutor() as threads, connect(peer.target, insecure()) as client:
        order = threads.submit(client.order, ACCOUNT, [DEVICE], idempotency_key="a-key", timeout=300, cancel=cancel)
        peer.wait_for(lambda: peer.calls)
        cancel.set() if by == "event" else client.close()
        assert isinstance(order.exception(PATIENCE), CancelledError)
        peer.wait_for(peer.calls[0].ended.is_set)


@pytest.mark.parametrize("answer", [silence, error(Code.RESOURCE_EXHAUSTED, "OVERLOADED", retry_delay=60)])
@pytest.mark.parametrize("by", ["task", "close"])
def test_a_cancelled_task_ends_its_order(peer: Peer, answer: Any, by: str) -> None:
    peer.answers = [answer]

    async def call() -> None:
        async with aio.connect(peer.target, insecure()) as client:
            order = asyncio.ensure_future(client.order(ACCOUNT, [DEVICE], idempotency_key="a-key", timeout=300))
            await asyncio.to_thread(peer.wait_for, lambda: peer.calls)
            if by == "task":
                order.cancel()
            else:
                await client.close()
            with pytest.raises(asyncio.CancelledError):
                await order
            await asyncio.to_thread(peer.wait_for, peer.calls[0].ended.is_set)

    asyncio.run(call())


def test_a_closed_client_takes_no_orders(peer: Peer) -> None:
    client = connect(peer.target, insecure())
    client.close()
    client.close()
    with pytest.raises(CancelledError):
        client.order(ACCOUNT, [DEVICE], idempotency_key="a-key")
