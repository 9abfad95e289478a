"""What an error means: `explain`, and the exceptions of this package."""

import dataclasses
import enum
from collections.abc import Iterable
from typing import Any, Optional, Union

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "thingspace-gateway"

_REPEATABLE_IF_EXHAUSTED = {"OVERLOADED", "UPSTREAM_THROTTLED", "STORE_FULL"}
# Without a reason, these codes come from the network or a proxy.
_REPEATABLE_WITHOUT_REASON = {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}
# What gRPC says about calls that this process has cancelled.
_OWN_CANCELLATIONS = ("Locally cancelled by application!", "Channel closed!", "Cancelled upon garbage collection!")


class Reason(str, enum.Enum):
    """The gateway's reasons for errors, which `ErrorReason` of esim.proto describes.

    A newer gateway may have more. So `Explanation.reason` is a `str`, which compares equal to these values.
    """

    INVALID_FIELD = "INVALID_FIELD"
    INVALID_RESUME_TOKEN = "INVALID_RESUME_TOKEN"  # noqa: S105
    IDEMPOTENCY_KEY_REUSED = "IDEMPOTENCY_KEY_REUSED"
    CALLER_UNAUTHENTICATED = "CALLER_UNAUTHENTICATED"
    CALLER_NOT_ALLOWED = "CALLER_NOT_ALLOWED"
    ACCOUNT_NOT_CONFIGURED = "ACCOUNT_NOT_CONFIGURED"
    REQUEST_NOT_FOUND = "REQUEST_NOT_FOUND"
    ORDER_IN_PROGRESS = "ORDER_IN_PROGRESS"
    ORDER_OUTCOME_UNKNOWN = "ORDER_OUTCOME_UNKNOWN"
    UPSTREAM_INVALID_INPUT = "UPSTREAM_INVALID_INPUT"
    UPSTREAM_ACCOUNT_NOT_FOUND = "UPSTREAM_ACCOUNT_NOT_FOUND"
    UPSTREAM_ACCOUNT_FORBIDDEN = "UPSTREAM_ACCOUNT_FORBIDDEN"
    UPSTREAM_PLAN_NOT_FOUND = "UPSTREAM_PLAN_NOT_FOUND"
    UPSTREAM_DEVICE_NOT_FOUND = "UPSTREAM_DEVICE_NOT_FOUND"
    UPSTREAM_DEVICE_STATE = "UPSTREAM_DEVICE_STATE"
    UPSTREAM_REFUSED = "UPSTREAM_REFUSED"
    UPSTREAM_CREDENTIALS_REJECTED = "UPSTREAM_CREDENTIALS_REJECTED"
    UPSTREAM_LOGIN_BLOCKED = "UPSTREAM_LOGIN_BLOCKED"
    UPSTREAM_THROTTLED = "UPSTREAM_THROTTLED"
    OVERLOADED = "OVERLOADED"
    UPSTREAM_UNAVAILABLE = "UPSTREAM_UNAVAILABLE"
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    DRAINING = "DRAINING"
    SLOW_READER = "SLOW_READER"
    STREAM_AGE = "STREAM_AGE"
    STILL_PENDING = "STILL_PENDING"
    DEADLINE = "DEADLINE"
    INTERNAL = "INTERNAL"
    UNKNOWN_METHOD = "UNKNOWN_METHOD"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    MALFORMED_CALL = "MALFORMED_CALL"
    STORE_FULL = "STORE_FULL"
    UPSTREAM_CREDENTIALS_UNAVAILABLE = "UPSTREAM_CREDENTIALS_UNAVAILABLE"


@dataclasses.dataclass(frozen=True)
class FieldViolation:
    """A field of a call that is wrong."""

    #: The path of the field, for example `devices[3].eid`.
    field: str
    #: What is wrong with it.
    description: str


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What an error of a call means."""

    #: The gRPC code.
    code: grpc.StatusCode
    #: The gateway's reason, see `Reason`. Empty if the error does not come from the gateway.
    reason: str
    #: The text of the error, for people.
    message: str
    #: All fields that are wrong. Only INVALID_FIELD has them.
    violations: "tuple[FieldViolation, ...]"
    #: The seconds to wait before the call may be repeated, if the gateway said so.
    retry_delay: Optional[float]
    #: Whether the same call, with the same key, can be repeated, and may succeed without a change by anybody who calls.
    safe_to_repeat: bool
    #: Further facts, for example `orderId`. docs/errors.md of the gateway names them.
    metadata: "dict[str, str]"
    #: The id under which the gateway's log has the details. Only INTERNAL has it.
    log_id: str

    def __str__(self) -> str:
        return " ".join(filter(None, (self.code.name, self.reason))) + f": {self.message}"


class GatewayError(Exception):
    """A call has failed. `__cause__` is the error of gRPC."""

    def __init__(self, explanation: Explanation, message: str = "") -> None:
        super().__init__(message or str(explanation))
        #: What the error means.
        self.explanation = explanation


class UnknownOutcomeError(GatewayError):
    """The order may or may not be placed. Call `order` again with the same key: that never orders twice.

    `explanation` and `__cause__` are those of the last attempt.
    """

    def __init__(
        self, explanation: Explanation, account: str, idempotency_key: str, order_id: str, request_id: str
    ) -> None:
        super().__init__(
            explanation, f"the order may or may not be placed; call again with the same key ({explanation})"
        )
        #: The account of the order.
        self.account = account
        #: The key of the order.
        self.idempotency_key = idempotency_key
        #: The gateway's id of the order, for its operator. Empty if it is not known.
        self.order_id = order_id
        #: The id of the request, if ThingSpace has accepted the order but the gateway could not store that. Else empty.
        self.request_id = request_id


def explain(error: Union[grpc.RpcError, GatewayError]) -> Explanation:
    """Returns what an error of a call means. Takes errors of this package and of gRPC, synchronous or asyncio."""
    if isinstance(error, GatewayError):
        return error.explanation
    # Errors of calls are instances of grpc.Call or of grpc.aio.AioRpcError, which have the same methods.
    code = error.code() if callable(getattr(error, "code", None)) else None
    if code is None:
        raise TypeError(f"{type(error).__name__} is no error of a call")
    message = error.details() or ""
    reason, violations, retry_delay, metadata, log_id = "", [], None, {}, ""
    for detail in _details(error):
        # `Unpack` returns false for a message of another type.
        info = error_details_pb2.ErrorInfo()
        retry = error_details_pb2.RetryInfo()
        request = error_details_pb2.BadRequest()
        log = error_details_pb2.RequestInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(retry):
            retry_delay = retry.retry_delay.ToTimedelta().total_seconds()
        elif detail.Unpack(request):
            violations += [FieldViolation(field.field, field.description) for field in request.field_violations]
        elif detail.Unpack(log):
            log_id = log.request_id
    return Explanation(
        code=code,
        reason=reason,
        message=message,
        violations=tuple(violations),
        retry_delay=retry_delay,
        safe_to_repeat=message not in _OWN_CANCELLATIONS and _is_safe_to_repeat(code, reason),
        metadata=metadata,
        log_id=log_id,
    )


def _details(error: Any) -> Iterable[Any]:
    # A proxy may send anything, so an unreadable status counts as none.
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            try:
                details: Iterable[Any] = status_pb2.Status.FromString(value).details
                return details
            except DecodeError:
                return []
    return []


def _is_safe_to_repeat(code: grpc.StatusCode, reason: str) -> bool:
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return True
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return reason in _REPEATABLE_IF_EXHAUSTED
    return reason == Reason.ORDER_OUTCOME_UNKNOWN or (not reason and code in _REPEATABLE_WITHOUT_REASON)
