"""The service config of docs/clients.md, with gRPC for Python."""

import os
import re
import socket
import subprocess
import threading
from pathlib import Path

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

ROOT = Path(__file__).parent.parent.parent
GATEWAY = ROOT / "target" / "debug" / "thingspace-gateway"
SERVICE = "thingspace.esim.v1"
# Longer than five tries without `waitForReady` take.
OUTAGE_SECONDS = 12

# Nothing leaves this machine.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"


def message(name):
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString((ROOT / "proto" / "esim.binpb").read_bytes()).file:
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{SERVICE}.{name}"))


def service_config():
    return re.search(r"```json\n(.*?)```", (ROOT / "docs" / "clients.md").read_text(), re.DOTALL)[1]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def order(channel):
    request, response = message("DownloadProfileRequest"), message("DownloadProfileResponse")
    download = channel.unary_unary(
        f"/{SERVICE}.EsimService/DownloadProfile",
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )
    device = {"eid": "89049032007008882600086299134038", "iccid": "89148000004292933820"}
    return download.future(request(idempotency_key="k", account_name="0000123456-00001", service_plan="a plan", devices=[device]))


def test_a_call_bridges_a_restart_of_the_only_replica(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    refused = threading.Event()
    with grpc.insecure_channel(address, options=[("grpc.service_config", service_config())]) as channel:
        channel.subscribe(lambda state: refused.set() if state == grpc.ChannelConnectivity.TRANSIENT_FAILURE else None)
        call = order(channel)
        assert refused.wait(20), "nothing listens yet"
        # The outage itself, not a wait for something to happen.
        threading.Event().wait(OUTAGE_SECONDS)
        assert not call.done(), call.exception()
        environment = {**os.environ, "NO_COLOR": "1"}
        command = [GATEWAY, "dev", "--listen", address, "--store", tmp_path / "store.redb"]
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as gateway:
            try:
                assert call.result(timeout=60).request_id
            finally:
                gateway.kill()
