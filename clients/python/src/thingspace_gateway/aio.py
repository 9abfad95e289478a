"""The client for asyncio. It has the same methods as the synchronous one, and is used in one event loop."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Optional, TypeVar

import grpc
import grpc.aio

from thingspace.esim.v1 import esim_pb2, esim_pb2_grpc

from ._connections import Connection, Connections
from ._credentials import Credentials
from ._order import ORDER_TIMEOUT, Attempts, Order, order_request
from ._tokens import TokenStore
from ._watch import IDLE_TIMEOUT, Resumption, Update

if TYPE_CHECKING:
    # Only the types have this class: at run time there is one stub for both kinds of channel.
    from thingspace.esim.v1.esim_pb2_grpc import EsimServiceAsyncStub

__all__ = ["Client", "Watch", "connect"]

_Result = TypeVar("_Result")


def connect(target: str, credentials: Credentials) -> "Client":
    """Returns a client of the gateway at `target`, as `thingspace_gateway.connect` does."""
    return Client(Connections(target, credentials, _open_channel, esim_pb2_grpc.EsimServiceStub))


def _open_channel(
    target: str, credentials: Optional[grpc.ChannelCredentials], options: "list[tuple[str, Any]]"
) -> grpc.aio.Channel:
    if credentials:
        return grpc.aio.secure_channel(target, credentials, options)
    return grpc.aio.insecure_channel(target, options)


class Client:
    """Orders profiles and watches requests. Made by `connect`.

    An asynchronous context manager: its end closes the client.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._closed = False
        self._tasks: "set[asyncio.Task[Any]]" = set()

    @property
    def stub(self) -> "EsimServiceAsyncStub":
        """The generated stub, for plain calls such as `GetRequestStatus`. Give each call a timeout.

        Get it again for each call, because the connection changes when a file of the credentials has changed.
        """
        stub: "EsimServiceAsyncStub" = self._connections.unary().stub
        return stub

    async def order(
        self,
        account: str,
        devices: "Iterable[esim_pb2.DeviceIdentifiers]",
        *,
        idempotency_key: str,
        service_plan: str = "",
        timeout: float = ORDER_TIMEOUT,
    ) -> Order:
        """Orders a profile for 1 to 10,000 devices. Returns when ThingSpace has accepted the order.

        The key names the order. Create it and store it with your own record before this call, because only the same key
        prevents a second order after a crash of your process. So there is no default.

        Repeats the call with the same key until the outcome is known, or until `timeout` (in seconds) ends.

        Raises `UnknownOutcomeError` if the order may or may not be placed: call again with the same key. Raises
        `GatewayError` if the order is not placed. After a cancellation, the order may or may not be placed.
        """
        request = order_request(account, devices, idempotency_key, service_plan)
        return await self._run(self._order(request, Attempts(account, idempotency_key, timeout)))

    def watch(
        self,
        account: str,
        request_id: str,
        *,
        token: str = "",
        token_store: Optional[TokenStore] = None,
        idle_timeout: float = IDLE_TIMEOUT,
    ) -> "Watch":
        """Returns an asynchronous iterator of the updates of a request. It ends after the final state of the request.

        The first update is a snapshot, unless the watch continues after `token`, the token of an update. The watch
        survives restarts of the gateway and breaks of the network, and delivers each revision once. It resumes, too, if
        no message comes for `idle_timeout` seconds.

        With a `token_store` the watch continues after the last update that was processed, also in another process. The
        token of an update is saved when the next update is asked for. So an update whose processing fails comes again
        after a restart: each is processed at least once. The token is deleted after the final update was processed. The
        methods of the store are called in a thread, because they may wait for a disk.

        Raises `GatewayError` if the watch cannot be resumed, for example REQUEST_NOT_FOUND.
        """
        return Watch(self, account, request_id, token, token_store, idle_timeout)

    async def close(self) -> None:
        """Cancels all orders and watches, and closes all connections."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for channel in self._connections.close():
            await channel.close()

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], traceback: Optional[TracebackType]
    ) -> None:
        await self.close()

    async def _order(self, request: esim_pb2.DownloadProfileRequest, attempts: Attempts) -> Order:
        while True:
            try:
                answer = await self.stub.DownloadProfile(request, timeout=attempts.timeout())
                return Order(answer.request_id, answer.replayed)
            except grpc.aio.AioRpcError as error:
                wait = attempts.failed(error)
            await self._close_retired()
            await asyncio.sleep(wait)

    async def _run(self, work: "Coroutine[Any, Any, _Result]") -> _Result:
        """Runs work in a task that `close` can cancel."""
        if self._closed:
            work.close()
            raise RuntimeError("the client is closed")
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        try:
            return await task
        finally:
            self._tasks.discard(task)

    async def _close_retired(self) -> None:
        for channel in self._connections.retired():
            await channel.close()


class Watch(AsyncIterator[Update]):
    """An asynchronous iterator of updates, made by `Client.watch`. One task iterates.

    Cancelling that task ends the watch. So does `aclose`, and the end of an `async with` block. A loop that is left
    early ends it when nothing refers to it any more.
    """

    def __init__(
        self,
        client: Client,
        account: str,
        request_id: str,
        token: str,
        token_store: Optional[TokenStore],
        idle_timeout: float,
    ) -> None:
        self._client = client
        self._account = account
        self._request_id = request_id
        self._token = token
        self._token_store = token_store
        self._idle_timeout = idle_timeout
        self._resumption: Optional[Resumption] = None
        self._unsaved: Optional[str] = None
        self._call: Any = None
        self._connection: Optional[Connection] = None
        self._task: "Optional[asyncio.Task[Any]]" = None
        self._ended = False
        self._closed = False

    def __aiter__(self) -> "Watch":
        return self

    async def __anext__(self) -> Update:
        if self._closed:
            raise RuntimeError("the watch is closed")
        try:
            update = await self._client._run(self._next())
        except BaseException:
            # Here, not in the task: one that is cancelled before it starts does nothing.
            self._ended = True
            self._end_stream()
            raise
        if update is None:
            raise StopAsyncIteration
        return update

    async def aclose(self) -> None:
        """Ends the watch. A task that waits for an update is cancelled."""
        self._closed = True
        if self._task:
            self._task.cancel()
        self._end_stream()
        await self._client._close_retired()

    async def __aenter__(self) -> "Watch":
        return self

    async def __aexit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], traceback: Optional[TracebackType]
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self._end_stream()

    async def _next(self) -> Optional[Update]:
        """Returns the next update, or `None` at the end."""
        if self._closed:
            # Since this task was made. The end of the iteration would say that the request is final.
            raise asyncio.CancelledError
        self._task = asyncio.current_task()
        try:
            resumption = await self._processed()
            while not self._ended:
                try:
                    call = self._call or self._begin_stream(resumption)
                    message = await _read(call, self._idle_timeout)
                except asyncio.TimeoutError:
                    wait = resumption.idle()
                except grpc.aio.AioRpcError as error:
                    wait = resumption.ended(error)
                else:
                    if message is grpc.aio.EOF:  # type: ignore[attr-defined]  # The types lack it.
                        await self._finished()
                    elif update := resumption.received(message):
                        self._unsaved = update.token
                        return update
                    continue
                self._end_stream()
                await self._client._close_retired()
                await asyncio.sleep(wait)
            return None
        finally:
            self._task = None

    async def _processed(self) -> Resumption:
        """Saves the token of the last update. Before the first update, loads that of another process."""
        if not self._resumption:
            token: Optional[str] = self._token
            if not token and self._token_store:
                token = await asyncio.to_thread(self._token_store.load, self._account, self._request_id)
            self._resumption = Resumption(self._account, self._request_id, token or "")
        if self._unsaved is not None:
            if self._token_store:
                await asyncio.to_thread(self._token_store.save, self._account, self._request_id, self._unsaved)
            self._unsaved = None
        return self._resumption

    async def _finished(self) -> None:
        self._ended = True
        self._end_stream()
        await self._client._close_retired()
        if self._token_store:
            await asyncio.to_thread(self._token_store.delete, self._account, self._request_id)

    def _begin_stream(self, resumption: Resumption) -> Any:
        self._connection = self._client._connections.acquire_watch()
        self._call = self._connection.stub.WatchRequest(resumption.request())
        return self._call

    def _end_stream(self) -> None:
        if self._call:
            self._call.cancel()
            self._call = None
        if self._connection:
            self._client._connections.release_watch(self._connection)
            self._connection = None


async def _read(call: Any, timeout: float) -> Any:
    """Returns the next message. `asyncio.wait_for` ignores a cancellation that comes with it, before Python 3.12."""
    reading = asyncio.ensure_future(call.read())
    try:
        await asyncio.wait({reading}, timeout=timeout)
        if not reading.done():
            raise asyncio.TimeoutError
        return reading.result()
    finally:
        reading.cancel()
