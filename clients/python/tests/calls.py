"""The clients of both kinds with one interface, so that one test covers both."""

import asyncio
from typing import Any, Protocol

from thingspace_gateway import Credentials, DeviceIdentifiers, Order, Update, aio, connect, insecure

ACCOUNT = "0000123456-00001"
DEVICE = DeviceIdentifiers(eid="89049032007008882600086299134038", iccid="89148000004292933820")


class Calls(Protocol):
    """Each call has a client of its own."""

    def order(self, target: str, key: str = "a-key", credentials: Credentials = ..., **options: Any) -> Order: ...

    def watch(self, target: str, request_id: str = "request-1", **options: Any) -> "list[Update]":
        """Returns all updates."""

    def read(self, target: str, count: int, request_id: str = "request-1", **options: Any) -> "list[Update]":
        """Returns the first updates, and does not ask for another one."""


class SyncCalls:
    def order(self, target: str, key: str = "a-key", credentials: Credentials = insecure(), **options: Any) -> Order:  # noqa: B008
        with connect(target, credentials) as client:
            return client.order(ACCOUNT, [DEVICE], idempotency_key=key, **options)

    def watch(self, target: str, request_id: str = "request-1", **options: Any) -> "list[Update]":
        with connect(target, insecure()) as client:
            return list(client.watch(ACCOUNT, request_id, **options))

    def read(self, target: str, count: int, request_id: str = "request-1", **options: Any) -> "list[Update]":
        with connect(target, insecure()) as client, client.watch(ACCOUNT, request_id, **options) as watch:
            return [next(watch) for _ in range(count)]


class AioCalls:
    def order(self, target: str, key: str = "a-key", credentials: Credentials = insecure(), **options: Any) -> Order:  # noqa: B008
        async def call() -> Order:
            async with aio.connect(target, credentials) as client:
                return await client.order(ACCOUNT, [DEVICE], idempotency_key=key, **options)

        return asyncio.run(call())

    def watch(self, target: str, request_id: str = "request-1", **options: Any) -> "list[Update]":
        async def call() -> "list[Update]":
            async with aio.connect(target, insecure()) as client:
                return [update async for update in client.watch(ACCOUNT, request_id, **options)]

        return asyncio.run(call())

    def read(self, target: str, count: int, request_id: str = "request-1", **options: Any) -> "list[Update]":
        async def call() -> "list[Update]":
            client = aio.connect(target, insecure())
            async with client, client.watch(ACCOUNT, request_id, **options) as watch:
                return [await watch.__anext__() for _ in range(count)]

        return asyncio.run(call())
