"""A real gRPC server that answers as a test wants, for errors that a gateway does not give easily."""

import dataclasses
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any, Callable, Optional

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from programs import PATIENCE

from thingspace.esim.v1 import esim_pb2, esim_pb2_grpc

Code = grpc.StatusCode
#: An answer to one call: returns a response, or messages, or aborts.
Answer = Callable[[Any], Any]


@dataclasses.dataclass
class Call:
    """A call that the peer has received."""

    request: Any
    context: Any
    time: float
    #: Whether the call has ended on the side of the peer.
    ended: threading.Event

    @property
    def authorization(self) -> Optional[str]:
        value: Optional[str] = dict(self.context.invocation_metadata()).get("authorization")
        return value


class Peer(esim_pb2_grpc.EsimServiceServicer):
    """Gives the next of its answers to each call, and the last one again and again."""

    def __init__(self, credentials: Optional[grpc.ServerCredentials] = None, port: int = 0) -> None:
        self.answers: "list[Answer]" = []
        self.calls: "list[Call]" = []
        self._changed = threading.Condition()
        self._server = grpc.server(futures.ThreadPoolExecutor(250))
        esim_pb2_grpc.add_EsimServiceServicer_to_server(self, self._server)
        address = f"127.0.0.1:{port}"
        if credentials:
            self.port = self._server.add_secure_port(address, credentials)
        else:
            self.port = self._server.add_insecure_port(address)
        self.target = f"127.0.0.1:{self.port}"

    def __enter__(self) -> "Peer":
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()

    def DownloadProfile(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._next(request, context)(context)

    def GetRequestStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._next(request, context)(context)

    def WatchRequest(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        yield from self._next(request, context)(context)

    def wait_for(self, condition: Callable[[], Any]) -> None:
        """Waits for a condition about the calls."""
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE)

    def _next(self, request: Any, context: Any) -> Answer:
        ended = threading.Event()

        def end() -> None:
            with self._changed:
                ended.set()
                self._changed.notify_all()

        context.add_callback(end)
        with self._changed:
            self.calls.append(Call(request, context, time.monotonic(), ended))
            self._changed.notify_all()
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def accepted(request_id: str = "request-1") -> Answer:
    return lambda context: esim_pb2.DownloadProfileResponse(request_id=request_id)


def error(
    code: grpc.StatusCode,
    reason: str = "",
    retry_delay: Optional[float] = None,
    violations: "dict[str, str]" = {},  # noqa: B006
    log_id: str = "",
    domain: str = "thingspace-gateway",
    **metadata: str,
) -> Answer:
    """Aborts the call. The library does not retry it by itself, so that tests see what the client does."""
    status = status_pb2.Status(code=code.value[0], message="a message")
    if reason:
        info = error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata)
        status.details.add().Pack(info)
    if retry_delay is not None:
        duration = Duration()
        duration.FromMilliseconds(round(retry_delay * 1000))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=duration))
    if violations:
        request = error_details_pb2.BadRequest()
        for field, description in violations.items():
            request.field_violations.add(field=field, description=description)
        status.details.add().Pack(request)
    if log_id:
        status.details.add().Pack(error_details_pb2.RequestInfo(request_id=log_id))

    def abort(context: Any) -> Any:
        details = ("grpc-status-details-bin", status.SerializeToString())
        context.set_trailing_metadata((details, ("grpc-retry-pushback-ms", "-1")))
        context.abort(code, "a message")

    return abort


def stream(*messages: esim_pb2.WatchRequestResponse, end: Optional[Answer] = None) -> Answer:
    """Sends messages, and then ends the stream well, or with an error."""

    def send(context: Any) -> Iterator[esim_pb2.WatchRequestResponse]:
        yield from messages
        if end:
            end(context)

    return send


def silence(context: Any) -> Any:
    """Sends nothing until the call ends."""
    ended = threading.Event()
    if context.add_callback(ended.set):
        ended.wait(PATIENCE)


def snapshot(revision: int, *iccids: str, more: bool = False, final: bool = False) -> esim_pb2.WatchRequestResponse:
    message = esim_pb2.WatchRequestResponse(resume_token="" if more else f"token-{revision}", more=more)
    _fill(message.snapshot, revision, iccids, final)
    return message


def change(revision: int, *iccids: str, more: bool = False, final: bool = False) -> esim_pb2.WatchRequestResponse:
    message = esim_pb2.WatchRequestResponse(resume_token="" if more else f"token-{revision}", more=more)
    _fill(message.change, revision, iccids, final)
    return message


def heartbeat(revision: int) -> esim_pb2.WatchRequestResponse:
    return esim_pb2.WatchRequestResponse(
        heartbeat=esim_pb2.Heartbeat(revision=revision), resume_token=f"token-{revision}"
    )


def _fill(content: Any, revision: int, iccids: "tuple[str, ...]", final: bool) -> None:
    content.revision = revision
    content.state = esim_pb2.REQUEST_STATE_SUCCEEDED if final else esim_pb2.REQUEST_STATE_PENDING
    for iccid in iccids:
        content.devices.add().identifiers.iccid = iccid
