"""What a watch delivers, and when it is resumed. Does no input or output, so that both kinds of client share it."""

import dataclasses
import logging
import random
from typing import Literal, Optional, Union

import grpc

from thingspace.esim.v1 import esim_pb2

from ._errors import GatewayError, Reason, explain
from ._order import FIRST_PAUSE, LONGEST_PAUSE

logger = logging.getLogger("thingspace_gateway")


#: The longest time without a message, in seconds. The gateway sends a heartbeat after 20 to 25 seconds.
IDLE_TIMEOUT = 60.0

Content = Union[esim_pb2.RequestStatus, esim_pb2.RequestChange]


@dataclasses.dataclass(frozen=True, repr=False)
class Update:
    """A request at one revision, or its changes up to one revision."""

    #: A snapshot replaces everything that was known. A change has the devices that have changed.
    kind: Literal["snapshot", "change"]
    #: A `RequestStatus` in a snapshot, else a `RequestChange`. Both have `state`, `counts`, `revision` and `devices`.
    content: Content
    #: Continues a watch after this update.
    token: str

    def __repr__(self) -> str:
        # Has no device and no token, because programs log what they receive.
        state = esim_pb2.RequestState.Name(self.content.state)
        return f"Update(kind={self.kind!r}, revision={self.content.revision}, state={state})"


class Resumption:
    """The state of one watch over all of its streams."""

    def __init__(self, account: str, request_id: str, token: str) -> None:
        self._account = account
        self._request_id = request_id
        self._token = token
        self._revision = -1
        self._parts: "list[Content]" = []
        self._pause = FIRST_PAUSE
        self._accepted = False

    def request(self) -> esim_pb2.WatchRequestRequest:
        """Returns the request of the next stream. Drops the parts of an update that the last stream left incomplete."""
        self._parts = []
        return esim_pb2.WatchRequestRequest(
            account_name=self._account, request_id=self._request_id, resume_token=self._token
        )

    def received(self, message: esim_pb2.WatchRequestResponse) -> Optional[Update]:
        """Takes a message. Returns an update if the message completes one."""
        self._pause, self._accepted = FIRST_PAUSE, True
        if message.HasField("snapshot"):
            self._parts.append(message.snapshot)
        elif message.HasField("change"):
            self._parts.append(message.change)
        if message.more:
            return None
        self._token = message.resume_token
        parts, self._parts = self._parts, []
        if not parts:
            return None
        content = _merged(parts)
        kind: Literal["snapshot", "change"] = "snapshot" if message.HasField("snapshot") else "change"
        # A watch that had to begin again gets a snapshot, which may be no news. It is older if the store was restored.
        if content.revision == self._revision or (kind == "change" and content.revision < self._revision):
            return None
        self._revision = content.revision
        return Update(kind, content, self._token)

    def ended(self, error: grpc.RpcError) -> float:
        """Returns the seconds to wait before the next stream, or raises the error that ends the watch."""
        explanation = explain(error)
        if explanation.reason == Reason.INVALID_RESUME_TOKEN and self._token:
            self._token = ""
        elif explanation.code == grpc.StatusCode.UNAUTHENTICATED and self._accepted:
            # The credentials have expired. If new ones are refused, too, they are wrong.
            self._accepted = False
        elif not explanation.safe_to_repeat:
            raise GatewayError(explanation) from error
        return self._wait(explanation.retry_delay or 0, f"{explanation.code.name} {explanation.reason}")

    def idle(self) -> float:
        """Returns the seconds to wait before the next stream, after one without messages."""
        return self._wait(0, "a time without messages")

    def _wait(self, at_least: float, cause: str) -> float:
        wait = max(self._pause, at_least) + random.uniform(0, self._pause / 2)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        logger.info("resuming the watch of request %s in %.1f s after %s", self._request_id, wait, cause)
        return wait


def _merged(parts: "list[Content]") -> Content:
    """Returns the last part, with the devices of all parts."""
    last = parts[-1]
    if len(parts) > 1:
        devices = [device for part in parts for device in part.devices]
        del last.devices[:]
        last.devices.extend(devices)
    return last
