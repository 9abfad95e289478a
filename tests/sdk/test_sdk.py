"""Verizon's own SDK, unchanged, against the simulator: what the SDK sends is what ThingSpace takes.

The SDK has no option for the address of ThingSpace, so the addresses of its environment are replaced.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
from verizon.configuration import Configuration, Environment
from verizon.exceptions.gio_rest_error_response_exception import GIORestErrorResponseException
from verizon.http.auth.thingspace_oauth import ThingspaceOauthCredentials
from verizon.http.auth.vz_m2m_token import VZM2mTokenCredentials
from verizon.models.device_profile_request import DeviceProfileRequest
from verizon.models.gio_device_id import GIODeviceId
from verizon.models.gio_device_list import GIODeviceList
from verizon.models.log_in_request import LogInRequest
from verizon.verizon_client import VerizonClient

GATEWAY = Path(__file__).parent.parent.parent / "target" / "debug" / "thingspace-gateway"
ACCOUNT = "0000123456-00001"
EID, ICCID = "89049032007008882600086299134038", "89148000004292933820"

# Nothing leaves this machine.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"


@pytest.fixture(scope="module")
def base_url():
    environment = {**os.environ, "RUST_LOG": "info", "NO_COLOR": "1"}
    command = [GATEWAY, "simulate", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as simulator:
        try:
            found = None
            while not found:
                line = simulator.stderr.readline()
                assert line, "the simulator ended"
                found = re.search(r"http://127\.0\.0\.1:\d+/api", line)
            yield found[0]
        finally:
            simulator.kill()


@pytest.fixture(scope="module")
def client(base_url, request):
    environments = Configuration.environments
    here = {server: re.sub(r"^https?://[^/]+(/api)?", base_url, url) for server, url in environments[Environment.PRODUCTION].items()}
    Configuration.environments = {environment: here for environment in environments}
    request.addfinalizer(lambda: setattr(Configuration, "environments", environments))
    application = ThingspaceOauthCredentials("simulator-key", "simulator-secret")
    stranger = VerizonClient(thingspace_oauth_credentials=application)
    login = stranger.session_management.start_connectivity_management_session(LogInRequest("simulator-user", "simulator-password"))
    session = VZM2mTokenCredentials(login.body.session_token)
    return VerizonClient(thingspace_oauth_credentials=application, vz_m2m_token_credentials=session)


def order(client, iccid=ICCID, kind="iccid"):
    device = GIODeviceList([GIODeviceId("eid", EID), GIODeviceId(kind, iccid)])
    request = DeviceProfileRequest(devices=[device], account_name=ACCOUNT, service_plan="a plan")
    return client.managing_e_sim_profiles.download_a_device_profile(request)


def test_an_order_is_placed_and_its_status_told(client):
    placed = order(client)
    assert placed.status_code == 200
    told = client.device_actions.get_asynchronous_request_status(ACCOUNT, placed.body.request_id)
    assert told.status_code == 200
    assert (told.body.request_id, told.body.status) == (placed.body.request_id, "Pending")


def test_a_refusal_is_read(client):
    with pytest.raises(GIORestErrorResponseException) as refused:
        order(client, kind="esn")
    assert refused.value.response_code == 400
    assert refused.value.error_code == "UnifiedWebService.INPUT_INVALID.Device.Kind.Invalid"


def test_an_unknown_request_is_not_found(client):
    with pytest.raises(GIORestErrorResponseException) as refused:
        client.device_actions.get_asynchronous_request_status(ACCOUNT, "86c83330-4bf5-4235-9c4e-a83f93aeae4c")
    assert (refused.value.response_code, refused.value.error_code) == (404, "404")
