import asyncio
import gc
import threading
import time
import uuid
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional

import pytest
from calls import ACCOUNT, Calls
from peer import Code, Peer, change, error, heartbeat, silence, snapshot, stream
from programs import PATIENCE, Dev

from thingspace_gateway import FileTokenStore, GatewayError, RequestState, Update, aio, connect, insecure

LOST = error(Code.UNAVAILABLE, "STREAM_AGE")


def revisions(updates: "list[Update]") -> "list[tuple[str, int]]":
    return [(update.kind, update.content.revision) for update in updates]


def iccids(update: Update) -> "list[str]":
    return [device.identifiers.iccid for device in update.content.devices]


def tokens(peer: Peer) -> "list[str]":
    """The token of each stream."""
    return [call.request.resume_token for call in peer.calls]


def held(*messages: Any) -> Any:
    """Sends messages, and then nothing until the call ends."""
    return stream(*messages, end=silence)


def test_a_watch_ends_after_the_final_state(calls: Calls, dev: Dev) -> None:
    order = calls.order(dev.target, str(uuid.uuid4()))
    updates = calls.watch(dev.target, order.request_id)
    assert [update.kind for update in updates] == ["snapshot"] + ["change"] * (len(updates) - 1)
    assert RequestState.Name(updates[-1].content.state) == "REQUEST_STATE_SUCCEEDED"
    # A watch that begins now has only the final state.
    (final,) = calls.watch(dev.target, order.request_id)
    assert final.kind == "snapshot"
    assert iccids(final) == ["89148000004292933820"]
    # After the token of the final state, there is nothing.
    assert calls.watch(dev.target, order.request_id, token=final.token) == []


def test_a_watch_of_an_unknown_request_fails(calls: Calls, dev: Dev) -> None:
    with pytest.raises(GatewayError) as raised:
        calls.watch(dev.target, "no-such-request-1")
    assert raised.value.explanation.reason == "REQUEST_NOT_FOUND"


def test_the_parts_of_a_revision_are_one_update(calls: Calls, peer: Peer) -> None:
    peer.answers = [
        stream(
            snapshot(1, "1", "2", more=True),
            snapshot(1, "3", more=True),
            snapshot(1, "4"),
            heartbeat(1),
            change(3, "2", more=True),
            change(3, "4", final=True),
        )
    ]
    first, second = calls.watch(peer.target)
    assert (first.kind, iccids(first), first.token) == ("snapshot", ["1", "2", "3", "4"], "token-1")
    assert (second.kind, iccids(second), second.token) == ("change", ["2", "4"], "token-3")
    assert RequestState.Name(second.content.state) == "REQUEST_STATE_SUCCEEDED"


def test_a_watch_continues_after_the_last_complete_update(calls: Calls, peer: Peer) -> None:
    peer.answers = [
        stream(snapshot(1, "1", "2"), change(2, "1", more=True), end=LOST),
        stream(end=error(Code.UNKNOWN)),
        stream(change(2, "1"), heartbeat(2), end=error(Code.INTERNAL, "some reason of a proxy", domain="a proxy")),
        stream(heartbeat(2), change(3, "2", final=True)),
    ]
    updates = calls.watch(peer.target)
    assert revisions(updates) == [("snapshot", 1), ("change", 2), ("change", 3)]
    assert iccids(updates[1]) == ["1"]
    assert tokens(peer) == ["", "token-1", "token-1", "token-2"]


def test_a_watch_waits_as_long_as_the_gateway_says(calls: Calls, peer: Peer) -> None:
    peer.answers = [
        stream(end=error(Code.RESOURCE_EXHAUSTED, "OVERLOADED", retry_delay=1.5)),
        stream(snapshot(1, final=True)),
    ]
    calls.watch(peer.target)
    assert peer.calls[1].time - peer.calls[0].time >= 1.5


def test_pauses_between_streams_grow_until_a_message_comes(calls: Calls, peer: Peer) -> None:
    peer.answers = [
        stream(end=LOST),
        stream(end=LOST),
        stream(heartbeat(0), end=LOST),
        stream(snapshot(1, final=True)),
    ]
    calls.watch(peer.target)
    pauses = [later.time - earlier.time for earlier, later in zip(peer.calls, peer.calls[1:])]
    assert pauses[0] >= 0.5
    assert pauses[1] >= 1
    # The third is again between 0.5 and 0.75 s, if the machine is quick.
    assert pauses[2] >= 0.5


def test_a_refused_resume_token_is_dropped(calls: Calls, peer: Peer) -> None:
    peer.answers = [
        stream(end=error(Code.INVALID_ARGUMENT, "INVALID_RESUME_TOKEN")),
        stream(snapshot(4, final=True)),
    ]
    assert revisions(calls.watch(peer.target, token="old")) == [("snapshot", 4)]  # noqa: S106
    assert tokens(peer) == ["old", ""]


def test_a_second_snapshot_is_delivered_only_if_it_is_news(calls: Calls, peer: Peer) -> None:
    refused = error(Code.INVALID_ARGUMENT, "INVALID_RESUME_TOKEN")
    peer.answers = [
        stream(snapshot(5), end=LOST),
        stream(end=refused),
        stream(snapshot(5), end=LOST),
        stream(end=refused),
        # The gateway was restored from a backup.
        stream(snapshot(4), end=LOST),
        stream(change(3), change(4), change(6, final=True)),
    ]
    assert revisions(calls.watch(peer.target)) == [("snapshot", 5), ("snapshot", 4), ("change", 6)]


@pytest.mark.parametrize("reason", ["CALLER_NOT_ALLOWED", "STILL_PENDING", "INVALID_RESUME_TOKEN"])
def test_other_errors_end_a_watch(calls: Calls, peer: Peer, reason: str) -> None:
    peer.answers = [stream(end=error(Code.FAILED_PRECONDITION, reason))]
    with pytest.raises(GatewayError) as raised:
        calls.watch(peer.target)
    assert raised.value.explanation.reason == reason
    assert len(peer.calls) == 1


def test_expired_credentials_are_tried_once_more(calls: Calls, peer: Peer) -> None:
    refused = error(Code.UNAUTHENTICATED, "CALLER_UNAUTHENTICATED")
    peer.answers = [stream(snapshot(1), end=refused), stream(heartbeat(1), end=refused), stream(end=refused)]
    with pytest.raises(GatewayError) as raised:
        calls.watch(peer.target)
    assert raised.value.explanation.reason == "CALLER_UNAUTHENTICATED"
    assert tokens(peer) == ["", "token-1", "token-1"]


def test_refused_credentials_end_a_watch(calls: Calls, peer: Peer) -> None:
    peer.answers = [stream(end=error(Code.UNAUTHENTICATED, "CALLER_UNAUTHENTICATED"))]
    with pytest.raises(GatewayError):
        calls.watch(peer.target)
    assert len(peer.calls) == 1


def test_a_silent_stream_is_resumed(calls: Calls, peer: Peer) -> None:
    peer.answers = [held(snapshot(1)), silence, stream(change(2, final=True))]
    assert revisions(calls.watch(peer.target, idle_timeout=0.5)) == [("snapshot", 1), ("change", 2)]
    assert tokens(peer) == ["", "token-1", "token-1"]
    assert all(call.ended.wait(PATIENCE) for call in peer.calls)


def test_a_slow_consumer_is_not_silence(peer: Peer) -> None:
    peer.answers = [stream(snapshot(1), change(2, final=True))]
    with connect(peer.target, insecure()) as client:
        watch = client.watch(ACCOUNT, "request-1", idle_timeout=0.2)
        next(watch)
        # The consumer is busy.
        threading.Event().wait(1)
        assert next(watch).content.revision == 2
    assert len(peer.calls) == 1


def test_a_token_is_saved_when_its_update_was_processed(calls: Calls, peer: Peer, tmp_path: Path) -> None:
    def saved() -> Optional[str]:
        return FileTokenStore(tmp_path).load(ACCOUNT, "request-1")

    peer.answers = [held(snapshot(1), change(2), change(3))]
    updates = calls.read(peer.target, 2, token_store=FileTokenStore(tmp_path))
    assert revisions(updates) == [("snapshot", 1), ("change", 2)]
    assert saved() == "token-1", "the second update may not have been processed"
    # Another process continues, and gets it again.
    peer.answers = [held(change(2), change(3, final=True))]
    assert revisions(calls.read(peer.target, 2, token_store=FileTokenStore(tmp_path))) == [("change", 2), ("change", 3)]
    assert saved() == "token-2", "the final update may not have been processed"
    peer.answers = [stream(change(3, final=True))]
    assert revisions(calls.watch(peer.target, token_store=FileTokenStore(tmp_path))) == [("change", 3)]
    assert saved() is None
    assert tokens(peer) == ["", "token-1", "token-2"]


def test_a_token_of_the_caller_has_precedence(calls: Calls, peer: Peer, tmp_path: Path) -> None:
    store = FileTokenStore(tmp_path)
    store.save(ACCOUNT, "request-1", "stored")
    peer.answers = [stream(change(2, final=True))]
    calls.watch(peer.target, token="of the caller", token_store=store)  # noqa: S106
    assert tokens(peer) == ["of the caller"]


@pytest.mark.parametrize("answer", [held(snapshot(1)), stream(snapshot(1), end=error(Code.UNAVAILABLE, "X", 60))])
@pytest.mark.parametrize("by", ["watch", "client"])
def test_another_thread_closes_a_watch(peer: Peer, answer: Any, by: str) -> None:
    peer.answers = [answer]
    with ThreadPoolExecutor() as threads, connect(peer.target, insecure()) as client:
        watch = client.watch(ACCOUNT, "request-1")
        next(watch)
        second = threads.submit(next, watch)
        (watch if by == "watch" else client).close()
        assert isinstance(second.exception(PATIENCE), CancelledError)
        peer.wait_for(peer.calls[0].ended.is_set)


@pytest.mark.parametrize("answer", [held(snapshot(1)), stream(snapshot(1), end=error(Code.UNAVAILABLE, "X", 60))])
@pytest.mark.parametrize("by", ["task", "watch", "client"])
def test_a_cancelled_task_ends_its_watch(peer: Peer, answer: Any, by: str) -> None:
    peer.answers = [answer]

    async def call() -> None:
        async with aio.connect(peer.target, insecure()) as client:
            watch = client.watch(ACCOUNT, "request-1")
            await watch.__anext__()
            second = asyncio.ensure_future(watch.__anext__())
            await asyncio.sleep(0)
            if by == "task":
                second.cancel()
            elif by == "watch":
                await watch.aclose()
            else:
                await client.close()
            with pytest.raises(asyncio.CancelledError):
                await second
            await asyncio.to_thread(peer.wait_for, peer.calls[0].ended.is_set)
            # gRPC's own tasks end a little later.
            end = time.monotonic() + PATIENCE
            while len(asyncio.all_tasks()) > 1:
                assert time.monotonic() < end, asyncio.all_tasks()
                await asyncio.sleep(0.02)

    asyncio.run(call())


def test_a_cancellation_is_not_lost_to_a_message(peer: Peer) -> None:
    def messages(context: Any) -> Any:
        yield snapshot(1)
        while context.is_active():
            yield heartbeat(1)

    peer.answers = [messages]

    async def call() -> None:
        async with aio.connect(peer.target, insecure()) as client:
            for _ in range(20):
                watch = client.watch(ACCOUNT, "request-1")
                await watch.__anext__()
                second = asyncio.ensure_future(watch.__anext__())
                await asyncio.sleep(0.05)
                second.cancel()
                done, _ = await asyncio.wait({second}, timeout=PATIENCE)
                assert done
                assert second.cancelled()

    asyncio.run(call())


def test_a_loop_that_is_left_ends_its_watch(peer: Peer) -> None:
    peer.answers = [held(snapshot(1), change(2))]
    with connect(peer.target, insecure()) as client:
        for _ in client.watch(ACCOUNT, "request-1"):
            break
        gc.collect()
        peer.wait_for(peer.calls[0].ended.is_set)


def test_an_asyncio_loop_that_is_left_ends_its_watch(peer: Peer) -> None:
    peer.answers = [held(snapshot(1), change(2))]

    async def call() -> None:
        async with aio.connect(peer.target, insecure()) as client:
            async for _ in client.watch(ACCOUNT, "request-1"):
                break
            gc.collect()
            await asyncio.to_thread(peer.wait_for, peer.calls[0].ended.is_set)

    asyncio.run(call())


def test_watches_leave_no_thread(peer: Peer) -> None:
    peer.answers = [held(snapshot(1))]
    before = set(threading.enumerate())
    with connect(peer.target, insecure()) as client:
        watches = [client.watch(ACCOUNT, "request-1") for _ in range(20)]
        with ThreadPoolExecutor(20) as threads:
            list(threads.map(next, watches))
        for watch in watches:
            watch.close()
        end = time.monotonic() + PATIENCE
        # The server of the test keeps its threads.
        while left := [thread for thread in set(threading.enumerate()) - before if "idle" in thread.name]:
            assert time.monotonic() < end, left
            time.sleep(0.02)


def connections(peer: Peer) -> int:
    """The number of connections that have had a call."""
    return len({call.context.peer() for call in peer.calls})


def test_100_watches_share_a_connection(peer: Peer) -> None:
    peer.answers = [held(snapshot(1))]
    with connect(peer.target, insecure()) as client, ThreadPoolExecutor(101) as threads:
        watches = [client.watch(ACCOUNT, "request-1") for _ in range(101)]
        list(threads.map(next, watches[:100]))
        assert connections(peer) == 1
        next(watches[100])
        assert connections(peer) == 2
        # Its connection is closed with it, and the next one gets another.
        watches[100].close()
        next(client.watch(ACCOUNT, "request-1"))
        assert connections(peer) == 3
        # There is room again on the first connection.
        watches[0].close()
        next(client.watch(ACCOUNT, "request-1"))
        assert connections(peer) == 3
