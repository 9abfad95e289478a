"""Drives the synchronous client: `python driver.py CONFIG.json`, with commands as lines of JSON on standard input.

Each command runs in a thread.
"""

import json
import logging
import sys
import threading
import time
from concurrent.futures import CancelledError
from typing import Any, Callable

import events

from thingspace_gateway import GatewayError, Watch, connect


class Driver:
    def __init__(self, config: "dict[str, Any]") -> None:
        self.config = config
        self.client = connect(config["target"], events.credentials(config))
        # What "cancel" calls, by the id of the command.
        self.cancels: "dict[str, Callable[[], None]]" = {}
        self.threads: "list[threading.Thread]" = []

    def run(self) -> None:
        events.emit(event="ready")
        for line in sys.stdin:
            command = json.loads(line)
            if command["do"] == "close":
                break
            self.do(command)
        for cancel in list(self.cancels.values()):
            cancel()
        self.client.close()
        for thread in self.threads:
            thread.join()
        events.emit(event="closed")

    def do(self, command: "dict[str, Any]") -> None:
        kind = command["do"]
        if kind == "resources":
            self.threads = [thread for thread in self.threads if thread.is_alive()]
            events.emit(event="resources", count=threading.active_count(), what="threads")
        elif kind == "cancel":
            if stop := self.cancels.get(command["id"]):
                stop()
        elif kind == "order":
            cancel = threading.Event()
            self.start(command, cancel.set, lambda: self.order(command, cancel))
        else:
            watch = self.client.watch(**events.watch_arguments(command, self.config))
            self.start(command, watch.close, lambda: self.watch(watch, command))

    def start(self, command: "dict[str, Any]", cancel: Callable[[], None], work: Callable[[], None]) -> None:
        self.cancels[command["id"]] = cancel
        thread = threading.Thread(target=self.work, args=(command["id"], work))
        self.threads.append(thread)
        thread.start()

    def work(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except GatewayError as error:
            events.failed(name, error)
        except CancelledError:
            events.emit(id=name, event="cancelled")
        except Exception as error:
            events.defect(name, error)
        finally:
            self.cancels.pop(name, None)

    def order(self, command: "dict[str, Any]", cancel: threading.Event) -> None:
        events.ordered(command["id"], self.client.order(**events.order_arguments(command), cancel=cancel))

    def watch(self, watch: Watch, command: "dict[str, Any]") -> None:
        with watch:
            for number, update in enumerate(watch, 1):
                events.updated(command["id"], update)
                if number == command.get("stop_after"):
                    watch.close()
                    events.emit(id=command["id"], event="stopped")
                    return
                time.sleep(command.get("pause_ms", 0) / 1000)
            events.emit(id=command["id"], event="end")


logging.basicConfig(level=logging.INFO, stream=sys.stderr)
Driver(events.load_config()).run()
