"""An example of a service that orders an eSIM profile for each device that is provisioned.

It reads a line "EID ICCID" for each device from its standard input, and prints what happens to the device. It keeps a file
for each device in a folder, so that it continues after a restart. It ends when its input has ended and each device has a
result.

Usage: python service.py TARGET ACCOUNT FOLDER
"""

import asyncio
import json
import sys
import uuid
from pathlib import Path

import thingspace_gateway as gateway
from thingspace_gateway import aio

# How long to wait before an order is tried again whose outcome is not known.
PAUSE_SECONDS = 10


class Device:
    """What the service stores about a device, in a file.

    `key` names the order. It is stored before the first call, and every later call uses it. `request_id` is known when the
    order is placed. `result` is the final state, or the error that has ended the order.
    """

    def __init__(self, file: Path, eid: str, iccid: str, key: str, request_id: str = "", result: str = "") -> None:
        self.file, self.eid, self.iccid = file, eid, iccid
        self.key, self.request_id, self.result = key, request_id, result

    def store(self) -> None:
        """Replaces the file in one step."""
        values = {name: value for name, value in vars(self).items() if name != "file"}
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(values))
        new.replace(self.file)

    def end(self, result: str) -> None:
        self.result = result
        self.store()
        print(self.iccid, "done:", result, flush=True)


async def run(client: aio.Client, account: str, device: Device) -> None:
    """Orders a profile, unless that is done, and follows the request until it is final."""
    identifiers = gateway.DeviceIdentifiers(eid=device.eid, iccid=device.iccid)
    while not device.request_id:
        try:
            placed = await client.order(account, [identifiers], idempotency_key=device.key)
        except gateway.GatewayError as error:
            if isinstance(error, gateway.UnknownOutcomeError) or error.explanation.safe_to_repeat:
                print(device.iccid, "is tried again:", error, flush=True)
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                return device.end(f"refused: {error}")
        else:
            device.request_id = placed.request_id
            device.store()
            print(device.iccid, "ordered", flush=True)
    state = ""
    tokens = gateway.FileTokenStore(device.file.parent / "tokens")
    try:
        async for update in client.watch(account, device.request_id, token_store=tokens):
            state = gateway.RequestState.Name(update.content.state).removeprefix("REQUEST_STATE_")
            print(device.iccid, state, flush=True)
    except gateway.GatewayError as error:
        return device.end(f"failed: {error}")
    device.end(state)


async def main(target: str, account: str, folder: Path) -> None:
    async with aio.connect(target, gateway.insecure()) as client, asyncio.TaskGroup() as tasks:
        for file in folder.glob("*.json"):
            device = Device(file, **json.loads(file.read_text()))
            if not device.result:
                tasks.create_task(run(client, account, device))
        while line := await asyncio.to_thread(sys.stdin.readline):
            eid, iccid = line.split()
            device = Device(folder / f"{Path(iccid).name}.json", eid, iccid, str(uuid.uuid4()))
            if not device.file.exists():
                device.store()
                tasks.create_task(run(client, account, device))


asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
