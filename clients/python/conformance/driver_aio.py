"""Drives the client for asyncio, as driver.py drives the synchronous one."""

import asyncio
import json
import logging
import sys
from collections.abc import Coroutine
from typing import Any

import events

from thingspace_gateway import GatewayError, aio


class Driver:
    def __init__(self, config: "dict[str, Any]") -> None:
        self.config = config
        self.client = aio.connect(config["target"], events.credentials(config))
        self.tasks: "dict[str, asyncio.Task[None]]" = {}

    async def run(self) -> None:
        events.emit(event="ready")
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            command = json.loads(line)
            if command["do"] == "close":
                break
            self.do(command)
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values())
        await self.client.close()
        events.emit(event="closed")

    def do(self, command: "dict[str, Any]") -> None:
        kind = command["do"]
        if kind == "resources":
            events.emit(event="resources", count=len(asyncio.all_tasks()), what="tasks")
        elif kind == "cancel":
            if task := self.tasks.get(command["id"]):
                task.cancel()
        else:
            work = self.order(command) if kind == "order" else self.watch(command)
            self.tasks[command["id"]] = asyncio.ensure_future(self.work(command["id"], work))

    async def work(self, name: str, work: "Coroutine[Any, Any, None]") -> None:
        try:
            await work
        except GatewayError as error:
            events.failed(name, error)
        except asyncio.CancelledError:
            events.emit(id=name, event="cancelled")
        except Exception as error:
            events.defect(name, error)
        finally:
            del self.tasks[name]

    async def order(self, command: "dict[str, Any]") -> None:
        events.ordered(command["id"], await self.client.order(**events.order_arguments(command)))

    async def watch(self, command: "dict[str, Any]") -> None:
        number = 0
        async with self.client.watch(**events.watch_arguments(command, self.config)) as watch:
            async for update in watch:
                number += 1
                events.updated(command["id"], update)
                if number == command.get("stop_after"):
                    events.emit(id=command["id"], event="stopped")
                    return
                await asyncio.sleep(command.get("pause_ms", 0) / 1000)
        events.emit(id=command["id"], event="end")


logging.basicConfig(level=logging.INFO, stream=sys.stderr)
asyncio.run(Driver(events.load_config()).run())
