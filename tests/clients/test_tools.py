"""Calls without generated code: grpcurl and `buf curl`, as docs/clients.md shows them."""

import hashlib
import json
import os
import subprocess

from certificates import Authority, write
from harness import ACCOUNT, DEVICE, PACKAGE, PATIENCE, ROOT, TOOLS, Gateway, Simulator

SERVICE = f"{PACKAGE}.EsimService"
ORDER = json.dumps({"account_name": ACCOUNT, "idempotency_key": "one key", "devices": [DEVICE]})


def run(folder, *command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, "HOME": str(folder)})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_grpcurl_and_buf_curl_place_the_same_order(tmp_path):
    with Simulator(tmp_path) as simulator, Gateway(tmp_path, simulator, grpc={"reflection": True}) as gateway:
        placed = run(tmp_path, TOOLS / "grpcurl", "-plaintext", "-d", ORDER, gateway.address, f"{SERVICE}/DownloadProfile")
        options = ["--protocol", "grpc", "--http2-prior-knowledge", "--data", ORDER]
        again = run(tmp_path, TOOLS / "buf", "curl", *options, f"http://{gateway.address}/{SERVICE}/DownloadProfile")
        assert again == {"requestId": placed["requestId"], "replayed": True}


def test_grpcurl_proves_who_it_is_with_a_certificate_or_a_token(tmp_path):
    """As docs/clients.md shows it."""
    authority, token = Authority(), "a token of a test"
    ca = tmp_path / "ca.crt"
    ca.write_bytes(authority.pem)
    (tmp_path / "tokens").write_text(f"orders {hashlib.sha256(token.encode()).hexdigest()}\n")
    cert, key = write(tmp_path, "server", authority.issue())
    client_cert, client_key = write(tmp_path, "client", authority.issue("orders.example.com"))
    grpc = {"tls_cert_file": cert, "tls_key_file": key, "client_ca_file": str(ca)}
    allow = '[[auth.allow]]\ncallers = ["token:orders", "dns:orders.example.com"]\nmethods = ["*"]\naccounts = ["*"]'
    auth = {"tokens_file": str(tmp_path / "tokens")}
    protos = ["-import-path", ROOT / "proto", "-proto", "thingspace/esim/v1/esim.proto"]
    identities = [["-H", f"authorization: Bearer {token}"], ["-cert", client_cert, "-key", client_key]]
    with Simulator(tmp_path) as simulator, Gateway(tmp_path, simulator, grpc=grpc, auth=auth, entries=allow) as gateway:
        placed = [
            run(tmp_path, TOOLS / "grpcurl", "-cacert", ca, *identity, *protos, "-d", ORDER, gateway.address, f"{SERVICE}/DownloadProfile")
            for identity in identities
        ]
        assert placed[0]["requestId"] == placed[1]["requestId"]
