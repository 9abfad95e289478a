import re
from pathlib import Path
from typing import Any

import grpc
import pytest
from calls import ACCOUNT, DEVICE, Calls
from certificates import Authority, write
from peer import Code, Peer, accepted, error

from thingspace.esim.v1.esim_pb2 import GetRequestStatusRequest, GetRequestStatusResponse
from thingspace_gateway import connect, insecure, tls
from thingspace_gateway._credentials import address, authority, is_loopback


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("127.0.0.1:50051", "dns:///127.0.0.1:50051"),
        ("gateway.example.com:50051", "dns:///gateway.example.com:50051"),
        ("[::1]:50051", "dns:///[::1]:50051"),
        ("dns:///gateway:50051", "dns:///gateway:50051"),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", "ipv4:127.0.0.1:1,127.0.0.1:2"),
        ("unix:/run/gateway.sock", "unix:/run/gateway.sock"),
        ("xds:///gateway", "xds:///gateway"),
    ],
)
def test_a_target_without_a_scheme_is_a_dns_name(target: str, expected: str) -> None:
    assert address(target) == expected


@pytest.mark.parametrize("target", ["", "gateway", "gateway:", "::1:50051", "gateway:50051/path", "a:1,b:2"])
def test_a_wrong_target_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        connect(target, insecure())


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("dns:///localhost:1", True),
        ("dns:///127.0.0.2:1", True),
        ("dns:localhost:1", True),
        ("dns:///[::1]:1", True),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", True),
        ("ipv6:[::1]:1", True),
        ("unix:/run/gateway.sock", True),
        ("dns:///gateway:1", False),
        ("dns:///localhost.example.com:1", False),
        ("dns://192.0.2.1/localhost:1", False),
        ("ipv4:127.0.0.1:1,192.0.2.1:2", False),
        ("xds:///localhost", False),
    ],
)
def test_only_targets_on_this_machine_are_loopback(target: str, expected: bool) -> None:
    assert is_loopback(target) is expected


def test_a_list_of_addresses_has_a_valid_authority(calls: Calls, peer: Peer) -> None:
    peer.answers = [accepted()]
    assert authority("ipv4:127.0.0.1:1,127.0.0.1:2") == "127.0.0.1:1"
    calls.order(f"ipv4:127.0.0.1:{peer.port},127.0.0.1:{peer.port}")


def test_a_token_over_plaintext_to_another_machine_is_refused(token_file: Path) -> None:
    with pytest.raises(ValueError, match="allow_token_over_plaintext") as raised:
        connect("gateway.example.com:50051", insecure(token_file=token_file))
    assert "first-token" not in str(raised.value)
    connect("gateway.example.com:50051", insecure(token_file=token_file, allow_token_over_plaintext=True)).close()


@pytest.mark.parametrize("content", [b"", b" \n", b"two\nlines", b"secret-\xff", "schlüssel".encode()])
def test_a_wrong_token_is_refused_and_not_shown(token_file: Path, content: bytes) -> None:
    token_file.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(token_file))) as raised:
        connect("127.0.0.1:50051", insecure(token_file=token_file))
    assert "secret" not in str(raised.value)


def test_a_missing_file_is_an_error_at_once(tmp_path: Path) -> None:
    for credentials in (insecure(token_file=tmp_path / "none"), tls(ca_file=tmp_path / "none")):
        with pytest.raises(FileNotFoundError):
            connect("127.0.0.1:50051", credentials)


def test_a_key_without_a_certificate_is_refused() -> None:
    with pytest.raises(ValueError, match="together"):
        tls(key_file="key.pem")


def test_the_token_is_read_for_each_call(calls: Calls, peer: Peer, token_file: Path) -> None:
    def rotated(context: Any) -> Any:
        token_file.write_text("second-token")
        return error(Code.RESOURCE_EXHAUSTED, "OVERLOADED", retry_delay=0)(context)

    def removed(context: Any) -> Any:
        token_file.unlink()
        return error(Code.RESOURCE_EXHAUSTED, "OVERLOADED", retry_delay=0)(context)

    peer.answers = [rotated, removed, accepted()]
    credentials = insecure(token_file=token_file)
    calls.order(peer.target, credentials=credentials)
    # Without the file, the last token counts.
    expected = ["Bearer first-token", "Bearer second-token", "Bearer second-token"]
    assert [call.authorization for call in peer.calls] == expected
    assert "token-" not in repr(credentials)


def test_plain_calls_have_the_token(peer: Peer, token_file: Path) -> None:
    peer.answers = [lambda context: GetRequestStatusResponse(next_page_token="next")]  # noqa: S106
    request = GetRequestStatusRequest(account_name=ACCOUNT, request_id="request-1")
    with connect(peer.target, insecure(token_file=token_file)) as client:
        assert client.stub.GetRequestStatus(request, timeout=30).next_page_token == "next"  # noqa: S105
        client.stub.GetRequestStatus.future(request, timeout=30).result()
        client.stub.GetRequestStatus.with_call(request, timeout=30)
    assert [call.authorization for call in peer.calls] == ["Bearer first-token"] * 3


def test_a_new_client_certificate_is_used_without_a_new_client(tmp_path: Path) -> None:
    authority = Authority()
    ca_file = tmp_path / "ca.crt"
    ca_file.write_bytes(authority.pem)
    certificate, key = authority.issue()
    server = grpc.ssl_server_credentials([(key, certificate)], authority.pem, require_client_auth=True)
    with Peer(server) as peer:
        peer.answers = [accepted()]
        cert_file, key_file = write(tmp_path, "client", authority.issue("old.example.com"))
        with connect(peer.target, tls(ca_file=ca_file, cert_file=cert_file, key_file=key_file)) as client:
            for name in ("old.example.com", "new.example.com", "newest.example.com", "newest.example.com"):
                write(tmp_path, "client", authority.issue(name)) if peer.calls else None
                client.order(ACCOUNT, [DEVICE], idempotency_key="a-key", timeout=60)
                (common_name,) = peer.calls[-1].context.auth_context()["x509_common_name"]
                assert common_name == name.encode()
        # A certificate that cannot be read does not end a client that works.
        with connect(peer.target, tls(ca_file=ca_file, cert_file=cert_file, key_file=key_file)) as client:
            client.order(ACCOUNT, [DEVICE], idempotency_key="a-key", timeout=60)
            Path(cert_file).unlink()
            client.order(ACCOUNT, [DEVICE], idempotency_key="a-key", timeout=60)
            assert peer.calls[-1].context.peer() == peer.calls[-2].context.peer()
