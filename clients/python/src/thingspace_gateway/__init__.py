"""Client of thingspace-gateway, which downloads eSIM profiles through Verizon's ThingSpace.

`connect` returns a client with two methods: `order` orders profiles, and never twice for one key; `watch` delivers the
updates of a request until it is final. `explain` says what an error means. `thingspace_gateway.aio` has the same for
asyncio. The generated code of the API is in `thingspace.esim.v1`.
"""

from thingspace.esim.v1.esim_pb2 import DeviceIdentifiers, DeviceState, RequestChange, RequestState, RequestStatus

from ._client import Client, Watch, connect
from ._credentials import Credentials, insecure, tls
from ._errors import Explanation, FieldViolation, GatewayError, Reason, UnknownOutcomeError, explain
from ._order import Order
from ._tokens import FileTokenStore, TokenStore
from ._watch import Update

__all__ = [
    "Client",
    "Credentials",
    "DeviceIdentifiers",
    "DeviceState",
    "Explanation",
    "FieldViolation",
    "FileTokenStore",
    "GatewayError",
    "Order",
    "Reason",
    "RequestChange",
    "RequestState",
    "RequestStatus",
    "TokenStore",
    "UnknownOutcomeError",
    "Update",
    "Watch",
    "connect",
    "explain",
    "insecure",
    "tls",
]
