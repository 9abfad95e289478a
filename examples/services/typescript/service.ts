/**
 * An example of a service that orders an eSIM profile for each device that is provisioned.
 *
 * It reads a line "EID ICCID" for each device from its standard input, and prints what happens to
 * the device. It keeps a file for each device in a folder, so that it continues after a restart. It
 * ends when its input has ended and each device has a result.
 *
 * Usage: node service.js TARGET ACCOUNT FOLDER
 */
import { randomUUID } from "node:crypto";
import { existsSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

import {
  connect,
  FileTokenStore,
  GatewayError,
  insecure,
  RequestState,
  UnknownOutcomeError,
} from "@thingspace-gateway/client";

/** How long to wait before an order is tried again whose outcome is not known. */
const PAUSE_MS = 10_000;

/** What the service stores about a device. */
interface Device {
  eid: string;
  iccid: string;
  /** Names the order. It is stored before the first call, and every later call uses it. */
  key: string;
  /** Known when the order is placed. */
  requestId?: string;
  /** The final state, or the error that has ended the order. */
  result?: string;
}

const [target, account, folder] = process.argv.slice(2) as [string, string, string];
const client = connect(target, insecure());
const tokenStore = new FileTokenStore(join(folder, "tokens"));

function fileOf({ iccid }: Pick<Device, "iccid">): string {
  return join(folder, `${basename(iccid)}.json`);
}

/** Replaces the file of a device in one step. */
function store(device: Device): void {
  const file = fileOf(device);
  writeFileSync(`${file}.new`, JSON.stringify(device));
  renameSync(`${file}.new`, file);
}

function end(device: Device, result: string): void {
  device.result = result;
  store(device);
  console.log(`${device.iccid} done: ${result}`);
}

/** Orders a profile, and returns the id of the request. */
async function order(device: Device): Promise<string> {
  for (;;) {
    try {
      const { eid, iccid, key } = device;
      const placed = await client.order({ account, devices: [{ eid, iccid }], idempotencyKey: key });
      return placed.requestId;
    } catch (error) {
      const again =
        error instanceof UnknownOutcomeError ||
        (error instanceof GatewayError && error.explanation.safeToRepeat);
      if (!again) throw error;
      console.log(`${device.iccid} is tried again: ${error.message}`);
      await sleep(PAUSE_MS);
    }
  }
}

/** Orders a profile, unless that is done, and follows the request until it is final. */
async function run(device: Device): Promise<void> {
  try {
    if (device.requestId === undefined) {
      device.requestId = await order(device);
      store(device);
      console.log(`${device.iccid} ordered`);
    }
    let state = "";
    for await (const { content } of client.watch({ account, requestId: device.requestId, tokenStore })) {
      state = RequestState[content.state];
      console.log(`${device.iccid} ${state}`);
    }
    end(device, state);
  } catch (error) {
    if (!(error instanceof GatewayError)) throw error;
    end(device, `${device.requestId === undefined ? "refused" : "failed"}: ${error.message}`);
  }
}

const running = readdirSync(folder)
  .filter((name) => name.endsWith(".json"))
  .map((name) => JSON.parse(readFileSync(join(folder, name), "utf8")) as Device)
  .filter((device) => device.result === undefined)
  .map(run);
for await (const line of createInterface({ input: process.stdin })) {
  const [eid, iccid] = line.split(" ");
  if (eid === undefined || iccid === undefined || existsSync(fileOf({ iccid }))) continue;
  const device = { eid, iccid, key: randomUUID() };
  store(device);
  running.push(run(device));
}
await Promise.all(running);
client.close();
