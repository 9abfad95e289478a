"""The connections of one client: one for unary calls, and others for watches."""

import collections
import dataclasses
import importlib.resources
import threading
from typing import Any, Callable, Optional

from ._credentials import AuthorizedChannel, Credentials, Files, Identity, address, authority, is_loopback

#: The most watches that share a connection. Proxies allow about 100 streams on one.
WATCHES_PER_CONNECTION = 100

_OPTIONS: "list[tuple[str, Any]]" = [
    (
        "grpc.service_config",
        importlib.resources.files("thingspace_gateway").joinpath("service-config.json").read_text(),
    ),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Otherwise gRPC shares a connection between channels with the same options.
    ("grpc.use_local_subchannel_pool", 1),
]
# Otherwise the window of a watch that nobody reads may grow to megabytes.
_WATCH_OPTIONS: "list[tuple[str, Any]]" = [("grpc.http2.bdp_probe", 0)]


@dataclasses.dataclass(eq=False)
class Connection:
    """A channel with its stub."""

    channel: Any
    stub: Any
    #: What its TLS files contained when it was opened.
    files: Files
    #: The number of watches that use it.
    watches: int = 0


class Connections:
    """Opens channels, and says which ones to close. The two kinds of client close them, each in its own way.

    A changed TLS file makes the next call open a new channel, because a channel of gRPC keeps its first certificate.
    """

    def __init__(
        self,
        target: str,
        credentials: Credentials,
        open_channel: "Callable[[str, Optional[Any], list[tuple[str, Any]]], Any]",
        new_stub: Callable[[Any], Any],
    ) -> None:
        self._target = address(target)
        self._identity = Identity(credentials, self._target)
        self._open_channel = open_channel
        self._new_stub = new_stub
        self._options = list(_OPTIONS)
        if name := authority(self._target):
            self._options.append(("grpc.default_authority", name))
        if is_loopback(self._target):
            # No proxy of the environment can reach the loopback addresses of this machine.
            self._options.append(("grpc.enable_http_proxy", 0))
        self._lock = threading.Lock()
        self._closed = False
        self._unary: Optional[Connection] = None
        # Calls may still use the connection before the current one.
        self._previous_unary: Optional[Connection] = None
        self._watches: "list[Connection]" = []
        self._released: "collections.deque[Connection]" = collections.deque()
        self._retired: "list[Any]" = []

    def unary(self) -> Connection:
        """Returns the connection for unary calls."""
        with self._lock:
            files = self._identity.files()
            if not self._unary or self._unary.files != files:
                opened = self._open(files, self._options)
                if self._previous_unary:
                    self._retired.append(self._previous_unary.channel)
                self._unary, self._previous_unary = opened, self._unary
            return self._unary

    def acquire_watch(self) -> Connection:
        """Returns a connection for one more watch."""
        with self._lock:
            self._count_released()
            files = self._identity.files()
            for connection in self._watches:
                if connection.files == files and connection.watches < WATCHES_PER_CONNECTION:
                    break
            else:
                connection = self._open(files, self._options + _WATCH_OPTIONS)
                self._watches.append(connection)
            connection.watches += 1
            return connection

    def release_watch(self, connection: Connection) -> None:
        """Ends a watch on a connection. Takes no lock, so that a finalizer may call it at any time."""
        self._released.append(connection)

    def retired(self) -> "list[Any]":
        """Returns the channels to close now: those of watch connections without watches, except the last one."""
        with self._lock:
            self._count_released()
            for connection in [connection for connection in self._watches if not connection.watches]:
                if len(self._watches) > 1:
                    self._watches.remove(connection)
                    self._retired.append(connection.channel)
            retired, self._retired = self._retired, []
            return retired

    def close(self) -> "list[Any]":
        """Returns all channels to close. No other is opened."""
        with self._lock:
            self._closed = True
            connections = [self._unary, self._previous_unary, *self._watches]
            channels = self._retired + [connection.channel for connection in connections if connection]
            self._unary = self._previous_unary = None
            self._watches, self._retired = [], []
            return channels

    def _count_released(self) -> None:
        while self._released:
            self._released.popleft().watches -= 1

    def _open(self, files: Files, options: "list[tuple[str, Any]]") -> Connection:
        if self._closed:
            raise RuntimeError("the client is closed")
        channel = self._open_channel(self._target, self._identity.channel_credentials(files), options)
        return Connection(channel, self._new_stub(AuthorizedChannel(channel, self._identity)), files)
