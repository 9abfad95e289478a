"""Fixtures: a real gateway, and a gRPC server that answers as a test wants."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from calls import AioCalls, Calls, SyncCalls
from peer import Peer
from programs import Dev

# Nothing leaves this machine.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"


@pytest.fixture(scope="session")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    with Dev(tmp_path_factory.mktemp("dev")) as dev:
        yield dev


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer() as peer:
        yield peer


@pytest.fixture(params=[SyncCalls, AioCalls], ids=["sync", "aio"])
def calls(request: pytest.FixtureRequest) -> Calls:
    """The client of each kind."""
    calls: Calls = request.param()
    return calls


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(" first-token \n")
    return file
