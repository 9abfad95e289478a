"""Cancels the streams of synchronous watches that receive no message for too long."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any, Optional

from ._connections import Connection

# The thread ends after about this many seconds in which nobody waits for a message.
_LINGER = 1.0


class Stream:
    """A stream of a watch, and the connection that it uses."""

    def __init__(self, connection: Connection, call: Any) -> None:
        self.connection = connection
        self.call = call
        #: When the wait for the next message ends, by the monotonic clock.
        self.end = 0.0
        #: Whether such a wait has ended without a message, so that the call was cancelled.
        self.expired = False


class IdleTimer:
    """One thread for all watches of a client. It exists only while watches wait for messages.

    gRPC has no timeout for the next message of a stream, and a thread for each watch would cost too much.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting: "set[Stream]" = set()
        self._thread: Optional[threading.Thread] = None
        self._wakes_at = 0.0

    @contextlib.contextmanager
    def limit(self, stream: Stream, seconds: float) -> Iterator[None]:
        """Cancels the call of the stream if the block lasts longer."""
        stream.end = time.monotonic() + seconds
        with self._condition:
            self._waiting.add(stream)
            if not self._thread:
                self._thread = threading.Thread(target=self._run, name="thingspace-gateway-idle", daemon=True)
                self._thread.start()
            elif stream.end < self._wakes_at:
                self._condition.notify()
        try:
            yield
        finally:
            with self._condition:
                self._waiting.discard(stream)

    def _run(self) -> None:
        with self._condition:
            while True:
                now = time.monotonic()
                for stream in [stream for stream in self._waiting if stream.end <= now]:
                    stream.expired = True
                    self._waiting.discard(stream)
                    stream.call.cancel()
                unused = not self._waiting
                self._wakes_at = min([now + _LINGER, *(stream.end for stream in self._waiting)])
                self._condition.wait(self._wakes_at - now)
                if unused and not self._waiting:
                    self._thread = None
                    return
