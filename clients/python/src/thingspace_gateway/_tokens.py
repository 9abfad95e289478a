"""Where a watch keeps its resume token, so that another process can continue it."""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Optional, Protocol, Union


class TokenStore(Protocol):
    """Keeps the resume tokens of watches.

    A watch calls `load` when it begins, `save` when the consumer asks for the update after the one with the token, and
    `delete` when the request is final and all updates are processed. The consumer receives errors of these methods.
    """

    def load(self, account: str, request_id: str) -> Optional[str]:
        """Returns the saved token, or `None` if there is none."""

    def save(self, account: str, request_id: str, token: str) -> None:
        """Replaces the saved token. It must be durable on return."""

    def delete(self, account: str, request_id: str) -> None:
        """Deletes the saved token, if there is one."""


class FileTokenStore:
    """Keeps each token in a file of a folder. A crash at any moment leaves the old token or the new one."""

    def __init__(self, directory: Union[str, Path]) -> None:
        self._directory = Path(directory)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def load(self, account: str, request_id: str) -> Optional[str]:
        """Returns the saved token, or `None` if there is none."""
        try:
            # A damaged token is one that the gateway refuses: the watch then begins with a snapshot.
            return self._file(account, request_id).read_bytes().decode(errors="replace") or None
        except FileNotFoundError:
            return None

    def save(self, account: str, request_id: str, token: str) -> None:
        """Replaces the saved token, and returns when it is on the disk."""
        descriptor, name = tempfile.mkstemp(prefix="new-", dir=self._directory)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(token.encode())
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self._file(account, request_id))
        except BaseException:
            Path(name).unlink()
            raise
        self._sync()

    def delete(self, account: str, request_id: str) -> None:
        """Deletes the saved token, if there is one."""
        try:
            self._file(account, request_id).unlink()
        except FileNotFoundError:
            return
        self._sync()

    def _file(self, account: str, request_id: str) -> Path:
        # A digest is a safe name for any id.
        name = hashlib.sha256(f"{len(account)}:{account}{request_id}".encode()).hexdigest()
        return self._directory / f"{name}.token"

    def _sync(self) -> None:
        """Makes the names in the folder durable, where the system can."""
        if os.name == "posix":
            descriptor = os.open(self._directory, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
