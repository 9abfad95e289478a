"""What the drivers read and print, see clients/conformance/README.md."""

import json
import sys
import threading
from pathlib import Path
from typing import Any, Union

from thingspace_gateway import (
    Credentials,
    DeviceIdentifiers,
    DeviceState,
    FileTokenStore,
    GatewayError,
    Order,
    RequestState,
    UnknownOutcomeError,
    Update,
    insecure,
    tls,
)

_printing = threading.Lock()


def emit(**event: Any) -> None:
    """Prints an event."""
    with _printing:
        print(json.dumps(event), flush=True)


def credentials(config: "dict[str, Any]") -> Credentials:
    token_file = config.get("token_file")
    if config.get("plaintext"):
        return insecure(token_file=token_file)
    return tls(
        ca_file=config.get("ca_file"),
        cert_file=config.get("cert_file"),
        key_file=config.get("key_file"),
        token_file=token_file,
    )


def order_arguments(command: "dict[str, Any]") -> "dict[str, Any]":
    arguments = {
        "account": command["account"],
        "devices": [DeviceIdentifiers(**device) for device in command["devices"]],
        "idempotency_key": command["key"],
        "service_plan": command.get("service_plan", ""),
    }
    if "timeout_seconds" in command:
        arguments["timeout"] = command["timeout_seconds"]
    return arguments


def watch_arguments(command: "dict[str, Any]", config: "dict[str, Any]") -> "dict[str, Any]":
    arguments: "dict[str, Any]" = {
        "account": command["account"],
        "request_id": command["request_id"],
        "token": command.get("token", ""),
    }
    if folder := command.get("token_folder"):
        arguments["token_store"] = FileTokenStore(folder)
    if idle_timeout := config.get("idle_timeout_seconds"):
        arguments["idle_timeout"] = idle_timeout
    return arguments


def ordered(name: str, order: Order) -> None:
    emit(id=name, event="ordered", request_id=order.request_id, replayed=order.replayed)


def updated(name: str, update: Update) -> None:
    content = update.content
    counts = content.counts
    emit(
        id=name,
        event=update.kind,
        state=RequestState.Name(content.state)[len("REQUEST_STATE_") :],
        revision=content.revision,
        counts={
            "total": counts.total,
            "pending": counts.pending,
            "succeeded": counts.succeeded,
            "failed": counts.failed,
        },
        devices=[
            {
                "iccid": device.identifiers.iccid,
                "state": DeviceState.Name(device.state)[len("DEVICE_STATE_") :],
                "fault": device.fault.code,
            }
            for device in content.devices
        ],
        token=update.token,
    )


def failed(name: str, error: GatewayError) -> None:
    unknown = error if isinstance(error, UnknownOutcomeError) else None
    explanation = error.explanation
    emit(
        id=name,
        event="error",
        kind="unknown_outcome" if unknown else "gateway",
        code=explanation.code.name,
        reason=explanation.reason,
        message=explanation.message,
        violations=[{"field": field.field, "description": field.description} for field in explanation.violations],
        retry_delay_seconds=explanation.retry_delay,
        safe_to_repeat=explanation.safe_to_repeat,
        metadata=explanation.metadata,
        order_id=unknown.order_id or None if unknown else None,
        request_id=unknown.request_id or None if unknown else None,
    )


def load_config() -> "dict[str, Any]":
    config: "dict[str, Any]" = json.loads(Path(sys.argv[1]).read_text())
    return config


def defect(name: str, error: Union[Exception, str]) -> None:
    """Prints what should not happen: neither an error of the gateway nor a cancellation."""
    emit(id=name, event="defect", message=repr(error))
