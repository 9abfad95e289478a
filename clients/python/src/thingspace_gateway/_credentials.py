"""How a client proves who it is, and whom it trusts."""

import dataclasses
import ipaddress
import logging
import re
from pathlib import Path
from typing import Any, Optional, Union

import grpc

logger = logging.getLogger("thingspace_gateway")

_StrPath = Union[str, Path]

_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "vsock:", "xds:")


@dataclasses.dataclass(frozen=True)
class Files:
    """The contents of the files that a new connection needs, in PEM. Never printed: one is a key."""

    ca: Optional[bytes] = dataclasses.field(default=None, repr=False)
    cert: Optional[bytes] = dataclasses.field(default=None, repr=False)
    key: Optional[bytes] = dataclasses.field(default=None, repr=False)


@dataclasses.dataclass(frozen=True)
class Credentials:
    """Made by `insecure` or `tls`. Has the names of files, never what is in them."""

    _secure: bool
    _ca_file: Optional[Path] = None
    _cert_file: Optional[Path] = None
    _key_file: Optional[Path] = None
    _token_file: Optional[Path] = None
    _allow_token_over_plaintext: bool = False

    def _read_files(self) -> Files:
        return Files(_read(self._ca_file), _read(self._cert_file), _read(self._key_file))

    def _read_token(self) -> str:
        if not self._token_file:
            return ""
        # An error about wrong Unicode would quote a part of the token.
        token = self._token_file.read_bytes().decode(errors="replace").strip()
        if not token or not token.isascii() or not token.isprintable():
            raise ValueError(f"{self._token_file} must contain a token: one line of printable ASCII")
        return token


def insecure(*, token_file: Optional[_StrPath] = None, allow_token_over_plaintext: bool = False) -> Credentials:
    """Connects without TLS: to a gateway on the same machine, or behind a service mesh that encrypts.

    `token_file` has a bearer token, see `tls`. It is refused unless the target is a loopback address, because others
    could read the token on the way. `allow_token_over_plaintext` accepts that, for example because a mesh encrypts.
    """
    return Credentials(False, _token_file=_path(token_file), _allow_token_over_plaintext=allow_token_over_plaintext)


def tls(
    *,
    ca_file: Optional[_StrPath] = None,
    cert_file: Optional[_StrPath] = None,
    key_file: Optional[_StrPath] = None,
    token_file: Optional[_StrPath] = None,
) -> Credentials:
    """Connects with TLS. All files are in PEM.

    `ca_file` has the trusted authorities; without it, those of gRPC are trusted. `cert_file` and `key_file` have the
    client's certificate with its chain, and its key. When one of these files has changed, the next call opens a new
    connection with the new files.

    `token_file` has a bearer token, for example a projected Kubernetes service account token. It is read for each call,
    so that a new token is used at once. Blanks and line breaks at its ends are removed.
    """
    if (cert_file is None) != (key_file is None):
        raise ValueError("cert_file and key_file must be given together")
    return Credentials(True, _path(ca_file), _path(cert_file), _path(key_file), _path(token_file))


class Identity:
    """Credentials in use: reads their files again and again, and keeps the last contents if a file cannot be read.

    Its construction fails if a file cannot be read, or if the token would go over plaintext to another machine.
    """

    def __init__(self, credentials: Credentials, target: str) -> None:
        self._credentials = credentials
        plaintext = not credentials._secure and not credentials._allow_token_over_plaintext
        if credentials._token_file and plaintext and not is_loopback(target):
            raise ValueError(
                f"others could read a token over plaintext to {target}; use tls(), or allow_token_over_plaintext=True"
                " if something else encrypts the connection"
            )
        self._files = credentials._read_files()
        self._token = credentials._read_token()

    def files(self) -> Files:
        try:
            self._files = self._credentials._read_files()
        except OSError as error:
            logger.warning("cannot read a file for TLS again, using its last contents: %s", error)
        return self._files

    def metadata(self) -> "list[tuple[str, str]]":
        """The metadata that each call has."""
        try:
            self._token = self._credentials._read_token()
        except (OSError, ValueError) as error:
            logger.warning("cannot read the token again, using the last one: %s", error)
        return [("authorization", f"Bearer {self._token}")] if self._token else []

    def channel_credentials(self, files: Files) -> Optional[grpc.ChannelCredentials]:
        """The credentials for a new channel. `None` means plaintext."""
        if not self._credentials._secure:
            return None
        return grpc.ssl_channel_credentials(files.ca, files.key, files.cert)


class AuthorizedChannel:
    """The part of a channel that generated stubs use. Adds the token to the metadata of each call.

    It serves synchronous and asyncio channels. Interceptors would need a variant for each.
    """

    def __init__(self, channel: Any, identity: Identity) -> None:
        self._channel = channel
        self._identity = identity

    def unary_unary(self, *args: Any, **options: Any) -> Any:
        return _AuthorizedMethod(self._channel.unary_unary(*args, **options), self._identity)

    def unary_stream(self, *args: Any, **options: Any) -> Any:
        return _AuthorizedMethod(self._channel.unary_stream(*args, **options), self._identity)


class _AuthorizedMethod:
    def __init__(self, method: Any, identity: Identity) -> None:
        self._method = method
        self._identity = identity

    def __call__(self, request: Any, *, metadata: Any = (), **options: Any) -> Any:
        return self._method(request, metadata=self._with_token(metadata), **options)

    def future(self, request: Any, *, metadata: Any = (), **options: Any) -> Any:
        return self._method.future(request, metadata=self._with_token(metadata), **options)

    def with_call(self, request: Any, *, metadata: Any = (), **options: Any) -> Any:
        return self._method.with_call(request, metadata=self._with_token(metadata), **options)

    def _with_token(self, metadata: Any) -> Any:
        return [*(metadata or ()), *self._identity.metadata()]


def address(target: str) -> str:
    """Returns the target for gRPC: `host:port` gets the scheme `dns`."""
    if target.startswith(_SCHEMES) or "://" in target:
        return target
    if not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:/\[\],\s]+):\d+", target):
        raise ValueError(f"{target!r} must be HOST:PORT, [IPV6]:PORT, or a target of gRPC such as dns:///HOST:PORT")
    return f"dns:///{target}"


def authority(target: str) -> Optional[str]:
    """Returns the authority to send, if gRPC would send one that is invalid: a list of addresses."""
    match = re.match(r"ipv[46]:([^,]+),", target)
    return match[1] if match else None


def is_loopback(target: str) -> bool:
    """Whether a target of gRPC is on this machine only."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    hosts = re.sub(r"^(dns:(///)?|ipv[46]:)", "", target).split(",")
    return all(_is_loopback_host(re.sub(r":\d+$", "", host).strip("[]")) for host in hosts)


def _is_loopback_host(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read(file: Optional[Path]) -> Optional[bytes]:
    return file.read_bytes() if file else None


def _path(path: Optional[_StrPath]) -> Optional[Path]:
    return None if path is None else Path(path)
