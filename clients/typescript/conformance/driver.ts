// The driver of the conformance tests: reads commands as lines of JSON from stdin, and prints events as lines of JSON.
// clients/conformance/README.md describes both. Usage: node driver.js CONFIG.json
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

import {
  type Client,
  connect,
  type Device,
  DeviceState,
  explain,
  FileTokenStore,
  insecure,
  RequestState,
  tls,
  UnknownOutcomeError,
} from "../src/index.js";

interface Config {
  target: string;
  plaintext: boolean;
  ca_file?: string;
  cert_file?: string;
  key_file?: string;
  token_file?: string;
  idle_timeout_seconds?: number;
}

interface OrderCommand {
  do: "order";
  id: string;
  account: string;
  key: string;
  devices: Device[];
  service_plan?: string;
  timeout_seconds?: number;
}

interface WatchCommand {
  do: "watch";
  id: string;
  account: string;
  request_id: string;
  token?: string;
  token_folder?: string;
  pause_ms?: number;
  stop_after?: number;
}

type Command =
  | OrderCommand
  | WatchCommand
  | { do: "cancel"; id: string }
  | { do: "resources" }
  | { do: "close" };

const config = JSON.parse(readFileSync(process.argv[2] ?? "", "utf8")) as Config;
const client = open(config);
const running = new Map<string, AbortController>();
let closing = false;

function print(event: Record<string, unknown>): void {
  process.stdout.write(`${JSON.stringify(event)}\n`);
}

function open({ target, plaintext, token_file: tokenFile, ...files }: Config): Client {
  const credentials = plaintext
    ? insecure({ tokenFile })
    : tls({ caFile: files.ca_file, certFile: files.cert_file, keyFile: files.key_file, tokenFile });
  return connect(target, credentials, {
    logger: (entry) => {
      console.error(JSON.stringify(entry));
    },
  });
}

async function order(command: OrderCommand, signal: AbortSignal): Promise<void> {
  const placed = await client.order({
    account: command.account,
    devices: command.devices,
    idempotencyKey: command.key,
    servicePlan: command.service_plan,
    timeoutMs: command.timeout_seconds === undefined ? undefined : command.timeout_seconds * 1000,
    signal,
  });
  print({
    id: command.id,
    event: "ordered",
    request_id: placed.requestId,
    replayed: placed.replayed,
  });
}

async function watch(command: WatchCommand, signal: AbortSignal): Promise<void> {
  const { id, stop_after: stopAfter, token_folder: folder } = command;
  const idle = config.idle_timeout_seconds;
  let printed = 0; // stop_after is at least 1.
  for await (const { kind, content, token } of client.watch({
    account: command.account,
    requestId: command.request_id,
    token: command.token,
    tokenStore: folder === undefined ? undefined : new FileTokenStore(folder),
    idleTimeoutMs: idle === undefined ? undefined : idle * 1000,
    signal,
  })) {
    const devices = content.devices.map(({ identifiers, state, fault }) => ({
      iccid: identifiers?.iccid,
      state: DeviceState[state],
      fault: fault?.code ?? "",
    }));
    const { state, revision, counts } = content;
    print({ id, event: kind, state: RequestState[state], revision, counts, devices, token });
    printed += 1;
    if (printed === stopAfter) break;
    if (command.pause_ms) await sleep(command.pause_ms, undefined, { signal });
  }
  print({ id, event: printed === stopAfter ? "stopped" : "end" });
}

function printError(id: string, error: unknown): void {
  const { code, reason, message, violations, retryDelayMs, safeToRepeat, metadata } =
    explain(error);
  const unknown = error instanceof UnknownOutcomeError ? error : undefined;
  print({
    id,
    event: "error",
    kind: unknown ? "unknown_outcome" : "gateway",
    code,
    reason,
    message,
    violations,
    retry_delay_seconds: retryDelayMs === undefined ? null : retryDelayMs / 1000,
    safe_to_repeat: safeToRepeat,
    metadata,
    order_id: unknown?.orderId ?? null,
    request_id: unknown?.requestId ?? null,
  });
}

async function run(command: OrderCommand | WatchCommand): Promise<void> {
  const controller = new AbortController();
  running.set(command.id, controller);
  try {
    if (command.do === "order") await order(command, controller.signal);
    else await watch(command, controller.signal);
  } catch (error) {
    if (controller.signal.aborted || closing) print({ id: command.id, event: "cancelled" });
    else printError(command.id, error);
  } finally {
    running.delete(command.id);
  }
}

print({ event: "ready" });
const operations = new Set<Promise<void>>();
for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line) as Command;
  if (command.do === "close") break;
  if (command.do === "cancel") {
    running.get(command.id)?.abort();
  } else if (command.do === "resources") {
    print({ event: "resources", count: process.getActiveResourcesInfo().length, what: "handles" });
  } else {
    const operation = run(command).finally(() => operations.delete(operation));
    operations.add(operation);
  }
}
closing = true;
client.close();
await Promise.all(operations);
print({ event: "closed" });
process.stdin.destroy();
