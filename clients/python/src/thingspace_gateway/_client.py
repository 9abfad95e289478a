"""The synchronous client."""

import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, Optional

import grpc

from thingspace.esim.v1 import esim_pb2, esim_pb2_grpc

from ._connections import Connections
from ._credentials import Credentials
from ._idle import IdleTimer, Stream
from ._order import ORDER_TIMEOUT, Attempts, Order, order_request
from ._tokens import TokenStore
from ._watch import IDLE_TIMEOUT, Resumption, Update

# An order notices within this time that it is cancelled. gRPC itself polls as often.
_CANCEL_SECONDS = 0.1


def connect(target: str, credentials: Credentials) -> "Client":
    """Returns a client of the gateway at `target`: `HOST:PORT`, or a target of gRPC such as `ipv4:10.0.0.1:50051`.

    It opens connections when they are needed, and waits for a gateway that cannot be reached. Raises `ValueError` if
    the target or a token is invalid, and `OSError` if a file of the credentials cannot be read.
    """
    return Client(Connections(target, credentials, _open_channel, esim_pb2_grpc.EsimServiceStub))


def _open_channel(
    target: str, credentials: Optional[grpc.ChannelCredentials], options: "list[tuple[str, Any]]"
) -> grpc.Channel:
    if credentials:
        return grpc.secure_channel(target, credentials, options)
    return grpc.insecure_channel(target, options)


class Client:
    """Orders profiles and watches requests. Made by `connect`. All threads can share it.

    A context manager: its end closes the client.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._idle = IdleTimer()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._watches: "weakref.WeakSet[Watch]" = weakref.WeakSet()

    @property
    def stub(self) -> esim_pb2_grpc.EsimServiceStub:
        """The generated stub, for plain calls such as `GetRequestStatus`. Give each call a timeout.

        Get it again for each call, because the connection changes when a file of the credentials has changed.
        """
        stub: esim_pb2_grpc.EsimServiceStub = self._connections.unary().stub
        self._close_retired()
        return stub

    def order(
        self,
        account: str,
        devices: "Iterable[esim_pb2.DeviceIdentifiers]",
        *,
        idempotency_key: str,
        service_plan: str = "",
        timeout: float = ORDER_TIMEOUT,
        cancel: Optional[threading.Event] = None,
    ) -> Order:
        """Orders a profile for 1 to 10,000 devices. Returns when ThingSpace has accepted the order.

        The key names the order. Create it and store it with your own record before this call, because only the same key
        prevents a second order after a crash of your process. So there is no default.

        Repeats the call with the same key until the outcome is known, or until `timeout` (in seconds) ends.

        Raises `UnknownOutcomeError` if the order may or may not be placed: call again with the same key. Raises
        `GatewayError` if the order is not placed. Raises `concurrent.futures.CancelledError` soon after another thread
        has set the event `cancel` or closed the client: then, too, the order may or may not be placed.
        """
        request = order_request(account, devices, idempotency_key, service_plan)
        attempts = Attempts(account, idempotency_key, timeout)
        while True:
            try:
                answer = self._attempt(request, attempts.timeout(), cancel)
                return Order(answer.request_id, answer.replayed)
            except Exception as error:
                self._check_open(cancel, error)
                if not isinstance(error, grpc.RpcError):
                    raise
                end = time.monotonic() + attempts.failed(error)
            while (left := end - time.monotonic()) > 0:
                self._closed.wait(min(left, _CANCEL_SECONDS))
                self._check_open(cancel)

    def watch(
        self,
        account: str,
        request_id: str,
        *,
        token: str = "",
        token_store: Optional[TokenStore] = None,
        idle_timeout: float = IDLE_TIMEOUT,
    ) -> "Watch":
        """Returns an iterator of the updates of a request. It ends after the final state of the request.

        The first update is a snapshot, unless the watch continues after `token`, the token of an update. The watch
        survives restarts of the gateway and breaks of the network, and delivers each revision once. It resumes, too, if
        no message comes for `idle_timeout` seconds.

        With a `token_store` the watch continues after the last update that was processed, also in another process. The
        token of an update is saved when the next update is asked for. So an update whose processing fails comes again
        after a restart: each is processed at least once. The token is deleted after the final update was processed.

        Raises `GatewayError` if the watch cannot be resumed, for example REQUEST_NOT_FOUND.
        """
        if not token and token_store:
            token = token_store.load(account, request_id) or ""
        watch = Watch(self, account, request_id, token, token_store, idle_timeout)
        with self._lock:
            self._watches.add(watch)
        return watch

    def close(self) -> None:
        """Ends all orders and watches with `concurrent.futures.CancelledError`, and closes all connections."""
        self._closed.set()
        with self._lock:
            watches = list(self._watches)
        for watch in watches:
            watch.close()
        for channel in self._connections.close():
            channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], traceback: Optional[TracebackType]
    ) -> None:
        self.close()

    def _attempt(
        self, request: esim_pb2.DownloadProfileRequest, timeout: float, cancel: Optional[threading.Event]
    ) -> esim_pb2.DownloadProfileResponse:
        call = self.stub.DownloadProfile.future(request, timeout=timeout)
        try:
            while True:
                try:
                    return call.result(_CANCEL_SECONDS)
                except grpc.FutureTimeoutError:
                    self._check_open(cancel)
        finally:
            call.cancel()

    def _check_open(self, cancel: Optional[threading.Event], cause: Optional[Exception] = None) -> None:
        if self._closed.is_set():
            raise CancelledError("the client is closed") from cause
        if cancel and cancel.is_set():
            raise CancelledError("the order was cancelled") from cause

    def _close_retired(self) -> None:
        for channel in self._connections.retired():
            channel.close()


class Watch(Iterator[Update]):
    """An iterator of updates, made by `Client.watch`. One thread iterates; any thread may close it.

    A context manager: its end closes the watch. A loop that is left early closes it when nothing refers to it any more.
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
        self._token_store = token_store
        self._idle_timeout = idle_timeout
        self._resumption = Resumption(account, request_id, token)
        self._unsaved: Optional[str] = None
        self._stream: Optional[Stream] = None
        self._ended = False
        self._closed = threading.Event()
        self._lock = threading.Lock()

    def __iter__(self) -> "Watch":
        return self

    def __next__(self) -> Update:
        if self._unsaved is not None:
            if self._token_store:
                self._token_store.save(self._account, self._request_id, self._unsaved)
            self._unsaved = None
        while not self._ended:
            try:
                stream = self._stream or self._begin_stream()
                with self._client._idle.limit(stream, self._idle_timeout):
                    message = next(stream.call, None)
            except Exception as error:
                self._resume(error)
                continue
            if message is None:
                self._ended = True
                self._end_stream()
                if self._token_store:
                    self._token_store.delete(self._account, self._request_id)
            elif update := self._resumption.received(message):
                self._unsaved = update.token
                return update
        raise StopIteration

    def close(self) -> None:
        """Ends the watch. A thread that waits for an update gets `concurrent.futures.CancelledError`."""
        self._closed.set()
        self._end_stream()

    def __enter__(self) -> "Watch":
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], traceback: Optional[TracebackType]
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if stream := self._stream:
            stream.call.cancel()
            self._client._connections.release_watch(stream.connection)

    def _begin_stream(self) -> Stream:
        if self._closed.is_set():
            raise CancelledError
        connection = self._client._connections.acquire_watch()
        with self._lock:
            try:
                stream = Stream(connection, connection.stub.WatchRequest(self._resumption.request()))
            except BaseException:
                self._client._connections.release_watch(connection)
                raise
            self._stream = stream
        if self._closed.is_set():
            # It was closed while the stream began, and may not have found it.
            stream.call.cancel()
        return stream

    def _end_stream(self) -> bool:
        """Ends the stream, if there is one. Returns whether it had no message for too long."""
        with self._lock:
            stream, self._stream = self._stream, None
        if not stream:
            return False
        stream.call.cancel()
        self._client._connections.release_watch(stream.connection)
        self._client._close_retired()
        return stream.expired

    def _resume(self, error: Exception) -> None:
        """Waits before the next stream, or raises the error that ends the watch."""
        expired = self._end_stream()
        try:
            if self._closed.is_set():
                raise CancelledError("the watch is closed") from error
            if not isinstance(error, grpc.RpcError):
                raise error
            wait = self._resumption.idle() if expired else self._resumption.ended(error)
        except Exception:
            self._ended = True
            raise
        self._closed.wait(wait)
