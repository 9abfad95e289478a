"""gRPC libraries of several languages with the service config and the watch loop of docs/clients.md: no call of theirs fails.

The variable LANGUAGES has the languages; without it, only Python's is there. The others need `make callers`.
"""

import contextlib
import hashlib
import os
import socket
import ssl
import subprocess

import pytest
from certificates import Authority, write
from harness import ACCOUNT, PACKAGE, ROOT, Callers, Gateway, Relay, Simulator, Stub, channel, code_of_the_docs, free_port, wait_until
from proxies import Nginx

GRPCURL = ROOT / "target" / "tools" / "bin" / "grpcurl"
TOKEN = "a token of a test"


def allow(caller):
    return f'[[auth.allow]]\ncallers = ["{caller}"]\nmethods = ["*"]\naccounts = ["*"]'


@pytest.fixture(params=os.environ.get("LANGUAGES", "python").split())
def language(request):
    return request.param


@pytest.fixture(scope="module")
def simulator(tmp_path_factory):
    with Simulator(tmp_path_factory.mktemp("simulator")) as simulator:
        simulator.orders_end("pending")
        yield simulator


def pending_request(gateway, **options):
    with channel(gateway.address) as direct:
        return Stub(direct).order(**options).request_id


def test_the_age_of_a_connection_fails_no_call(language, tmp_path, simulator):
    with Gateway(tmp_path, simulator, grpc={"connection_age": "10s", "connection_grace": "1s"}) as gateway:
        request_id = pending_request(gateway)
        with Relay(gateway.address) as relay, Callers(tmp_path, relay.address, request_id, language) as callers:
            callers.begin()
            assert (relay.connections, relay.goaways) == (1, 0)
            callers.resumed()
            assert relay.goaways >= 1
            assert relay.connections >= 2
            simulator.finish(request_id)
            callers.end()


@pytest.mark.parametrize("behind_nginx", [False, True], ids=["direct", "nginx"])
def test_a_restart_fails_no_call(language, behind_nginx, tmp_path, simulator):
    listen = f"127.0.0.1:{free_port()}"
    with Gateway(tmp_path, simulator, listen) as gateway, contextlib.ExitStack() as proxies:
        target = listen
        if behind_nginx:
            target = proxies.enter_context(Nginx(tmp_path, listen, server=code_of_the_docs("nginx"))).address
        request_id = pending_request(gateway)
        with Callers(tmp_path, target, request_id, language) as callers:
            callers.begin()
            assert gateway.drain() == 0
            with Gateway(tmp_path, simulator, listen):
                callers.resumed()
                simulator.finish(request_id)
                callers.end()


def served_certificate(address, authority):
    """The certificate that a new connection gets."""
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.set_alpn_protocols(["h2"])
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port))) as plain, context.wrap_socket(plain, server_hostname=host) as connection:
        return ssl.DER_cert_to_PEM_cert(connection.getpeercert(binary_form=True))


def test_a_new_certificate_is_served_and_fails_no_call(language, tmp_path, simulator):
    authority = Authority()
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    cert, key = write(tmp_path, "server", authority.issue())
    client_cert, client_key = write(tmp_path, "client", authority.issue("orders.example.com"))
    ca = str(tmp_path / "ca.crt")
    grpc = {"tls_cert_file": cert, "tls_key_file": key, "client_ca_file": ca, "client_cert": "required"}
    identity = {"ca": ca, "cert": client_cert, "key": client_key}
    with Gateway(tmp_path, simulator, grpc=grpc, entries=allow("dns:orders.example.com")) as gateway:
        request_id = grpcurl_order(gateway, "-cacert", ca, "-cert", client_cert, "-key", client_key)
        with Relay(gateway.address) as relay, Callers(tmp_path, relay.address, request_id, language, **identity) as callers:
            callers.begin()
            pair = authority.issue()
            write(tmp_path, "server", pair)
            wait_until(lambda: served_certificate(gateway.address, authority) == pair[0].decode(), "the new certificate")
            callers.more_calls()
            assert relay.connections == 1
            simulator.finish(request_id)
            callers.end()


def grpcurl_order(gateway, *options):
    """Orders with grpcurl, which shows that its options are right, and returns the request id."""
    body = f"""{{"account_name": "{ACCOUNT}", "idempotency_key": "grpcurl", "service_plan": "a plan",
        "devices": [{{"eid": "89049032007008882600086299134038", "iccid": "89148000004292933820"}}]}}"""
    protos = ["-protoset", ROOT / "proto" / "esim.binpb"]
    command = [GRPCURL, *options, *protos, "-d", body, gateway.address, f"{PACKAGE}.EsimService/DownloadProfile"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split('"')[3]


def test_a_token_identifies_the_caller(language, tmp_path, simulator):
    (tmp_path / "tokens").write_text(f"orders {hashlib.sha256(TOKEN.encode()).hexdigest()}\n")
    authority = Authority()
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    cert, key = write(tmp_path, "server", authority.issue())
    ca = str(tmp_path / "ca.crt")
    settings = {"grpc": {"tls_cert_file": cert, "tls_key_file": key}, "auth": {"tokens_file": str(tmp_path / "tokens")}}
    with Gateway(tmp_path, simulator, entries=allow("token:orders"), **settings) as gateway:
        request_id = grpcurl_order(gateway, "-cacert", ca, "-H", f"authorization: Bearer {TOKEN}")
        with Callers(tmp_path, gateway.address, request_id, language, ca=ca, token=TOKEN) as callers:
            callers.begin()
            simulator.finish(request_id)
            callers.end()
        with Callers(tmp_path, gateway.address, request_id, language, ca=ca, token="another token") as callers:
            with pytest.raises(AssertionError, match="UNAUTHENTICATED|Unauthenticated"):
                callers.begin()
