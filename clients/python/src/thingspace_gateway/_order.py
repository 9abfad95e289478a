"""When an order is repeated, and what its end means. Does no input or output, so that both kinds of client share it."""

import dataclasses
import logging
import random
import time
from collections.abc import Iterable

import grpc

from thingspace.esim.v1 import esim_pb2

from ._errors import Explanation, GatewayError, Reason, UnknownOutcomeError, explain

logger = logging.getLogger("thingspace_gateway")

#: The longest time that an order takes by default, in seconds.
ORDER_TIMEOUT = 300.0
#: The longest deadline of one attempt, in seconds.
ATTEMPT_TIMEOUT = 90.0
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0

# After these, the order may be placed, or may still be. Errors of the network and of proxies have no reason.
_UNCERTAIN = {
    "",
    Reason.DEADLINE,
    Reason.ORDER_IN_PROGRESS,
    Reason.ORDER_OUTCOME_UNKNOWN,
    Reason.INTERNAL,
    Reason.SLOW_READER,
    Reason.STREAM_AGE,
}
# The gateway has looked up the key before it gives one of these. So no earlier attempt has placed the order, either.
_NOT_PLACED = {Reason.UPSTREAM_UNAVAILABLE, Reason.UPSTREAM_THROTTLED}
# These refusals say nothing about earlier attempts, because they come before the key is looked up.
_NOT_LOOKED_UP = {
    "",
    Reason.CALLER_UNAUTHENTICATED,
    Reason.CALLER_NOT_ALLOWED,
    Reason.ACCOUNT_NOT_CONFIGURED,
    Reason.UNKNOWN_METHOD,
    Reason.MALFORMED_CALL,
    Reason.MESSAGE_TOO_LARGE,
}


@dataclasses.dataclass(frozen=True)
class Order:
    """An order that ThingSpace has accepted."""

    #: The id of the request, for `watch`.
    request_id: str
    #: True if an earlier call with the same key had already placed the order.
    replayed: bool


def order_request(
    account: str, devices: "Iterable[esim_pb2.DeviceIdentifiers]", idempotency_key: str, service_plan: str
) -> esim_pb2.DownloadProfileRequest:
    return esim_pb2.DownloadProfileRequest(
        account_name=account, devices=devices, idempotency_key=idempotency_key, service_plan=service_plan
    )


class Attempts:
    """The attempts of one order."""

    def __init__(self, account: str, idempotency_key: str, timeout: float) -> None:
        self._account = account
        self._key = idempotency_key
        self._end = time.monotonic() + timeout
        self._pause = FIRST_PAUSE
        self._uncertain = False
        self._order_id = ""
        self._request_id = ""

    def timeout(self) -> float:
        """The deadline of the next attempt, in seconds from now."""
        return min(ATTEMPT_TIMEOUT, max(self._end - time.monotonic(), 0))

    def failed(self, error: grpc.RpcError) -> float:
        """Returns the seconds to wait before the next attempt, or raises the error that ends the order."""
        explanation = explain(error)
        self._remember(explanation)
        if not explanation.safe_to_repeat:
            raise self._error(explanation) from error
        delay = self._pause if explanation.retry_delay is None else explanation.retry_delay
        wait = delay + random.uniform(0, self._pause / 2)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        if time.monotonic() + wait >= self._end:
            raise self._error(explanation) from error
        logger.info("repeating an order in %.1f s after %s %s", wait, explanation.code.name, explanation.reason)
        return wait

    def _remember(self, explanation: Explanation) -> None:
        """Remembers what the end of an attempt says about the order."""
        reason = explanation.reason
        may_be_placed = explanation.safe_to_repeat or reason == Reason.INTERNAL
        if may_be_placed and reason in _UNCERTAIN:
            self._uncertain |= explanation.metadata.get("nothingSent") != "true"
        elif reason in _NOT_PLACED or not (explanation.safe_to_repeat or reason in _NOT_LOOKED_UP):
            self._uncertain = False
        self._order_id = explanation.metadata.get("orderId", self._order_id)
        self._request_id = explanation.metadata.get("requestId", self._request_id)

    def _error(self, explanation: Explanation) -> GatewayError:
        if self._uncertain:
            return UnknownOutcomeError(explanation, self._account, self._key, self._order_id, self._request_id)
        return GatewayError(explanation)
