from typing import Any

import pytest
from calls import Calls
from peer import Code, Peer, error

from thingspace.esim.v1.esim_pb2 import ErrorReason
from thingspace_gateway import Explanation, FieldViolation, GatewayError, Reason, explain

CODES: "list[Any]" = [code for code in Code if code != Code.OK]
REPEATABLE = {
    (Code.UNAVAILABLE, ""),
    (Code.UNAVAILABLE, "DRAINING"),
    (Code.DEADLINE_EXCEEDED, ""),
    (Code.DEADLINE_EXCEEDED, "DEADLINE"),
    (Code.RESOURCE_EXHAUSTED, "OVERLOADED"),
    (Code.RESOURCE_EXHAUSTED, "UPSTREAM_THROTTLED"),
    (Code.RESOURCE_EXHAUSTED, "STORE_FULL"),
    (Code.FAILED_PRECONDITION, "ORDER_OUTCOME_UNKNOWN"),
    (Code.CANCELLED, ""),
    (Code.UNKNOWN, ""),
    (Code.INTERNAL, ""),
}
NOT_REPEATABLE = {(code, "") for code in CODES} - REPEATABLE | {
    (Code.INTERNAL, "INTERNAL"),
    (Code.INTERNAL, "MALFORMED_CALL"),
    (Code.FAILED_PRECONDITION, "STILL_PENDING"),
    (Code.INVALID_ARGUMENT, "INVALID_FIELD"),
    (Code.UNAUTHENTICATED, "CALLER_UNAUTHENTICATED"),
}


def failure(calls: Calls, peer: Peer, code: Any, reason: str, **details: Any) -> GatewayError:
    """The error of an order whose only attempt fails so."""
    peer.answers = [error(code, reason, retry_delay=60, **details)]
    with pytest.raises(GatewayError) as raised:
        calls.order(peer.target, timeout=30)
    return raised.value


@pytest.mark.parametrize(("code", "reason"), sorted(REPEATABLE | NOT_REPEATABLE, key=str))
def test_code_and_reason_say_whether_a_repetition_is_safe(calls: Calls, peer: Peer, code: Any, reason: str) -> None:
    explanation = failure(calls, peer, code, reason).explanation
    assert (explanation.code, explanation.reason) == (code, reason)
    assert explanation.safe_to_repeat is ((code, reason) in REPEATABLE)


def test_all_details_are_read(calls: Calls, peer: Peer) -> None:
    raised = failure(
        calls,
        peer,
        Code.INVALID_ARGUMENT,
        "INVALID_FIELD",
        violations={"devices[0].eid": "must be 32 digits", "account_name": "must be given"},
        log_id="log-1",
        limit="a limit",
    )
    expected = Explanation(
        code=Code.INVALID_ARGUMENT,
        reason="INVALID_FIELD",
        message="a message",
        violations=(
            FieldViolation("devices[0].eid", "must be 32 digits"),
            FieldViolation("account_name", "must be given"),
        ),
        retry_delay=60.0,
        safe_to_repeat=False,
        metadata={"limit": "a limit"},
        log_id="log-1",
    )
    assert raised.explanation == expected
    assert explain(raised) == expected
    assert explain(raised.__cause__) == expected  # type: ignore[arg-type]
    assert str(raised) == "INVALID_ARGUMENT INVALID_FIELD: a message"


def test_the_reason_of_another_service_does_not_count(calls: Calls, peer: Peer) -> None:
    explanation = failure(calls, peer, Code.NOT_FOUND, "REQUEST_NOT_FOUND", domain="example.com").explanation
    assert explanation.reason == ""


def test_details_that_cannot_be_read_count_as_none(calls: Calls, peer: Peer) -> None:
    def abort(context: Any) -> Any:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff"),))
        context.abort(Code.NOT_FOUND, "not here")

    peer.answers = [abort]
    with pytest.raises(GatewayError, match="NOT_FOUND: not here") as raised:
        calls.order(peer.target)
    assert raised.value.explanation.reason == ""


def test_other_errors_have_no_explanation() -> None:
    with pytest.raises(TypeError):
        explain(ValueError())  # type: ignore[arg-type]


def test_the_reasons_are_those_of_the_api() -> None:
    prefix = "ERROR_REASON_"
    assert [prefix + reason for reason in Reason] == ErrorReason.keys()[1:]
