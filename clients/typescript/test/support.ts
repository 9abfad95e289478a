// The real gateway with a simulated ThingSpace, and a server that answers with chosen statuses.
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { type AddressInfo, connect as connectSocket, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import type { TestContext } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import {
  Metadata,
  Server,
  ServerCredentials,
  type ServerUnaryCall,
  type ServerWritableStream,
  status,
} from "@grpc/grpc-js";

import {
  BadRequest,
  ErrorInfo,
  RequestInfo,
  RetryInfo,
} from "../src/generated/google/rpc/error_details.js";
import { Status } from "../src/generated/google/rpc/status.js";
import {
  type DownloadProfileRequest,
  DownloadProfileResponse,
  type EsimServiceServer,
  EsimServiceService,
  RequestState,
  type WatchRequestRequest,
  WatchRequestResponse,
} from "../src/generated/thingspace/esim/v1/esim.js";
import {
  type Client,
  connect,
  type ConnectOptions,
  type Credentials,
  insecure,
} from "../src/index.js";

export const ACCOUNT = "0000123456-00001";
/** The download to this device succeeds after a moment. */
export const DEVICE = { eid: "89049032007008882600086299134038", iccid: "89148000004292933820" };
/** The download to this device fails after a moment. */
export const FAILING = { eid: "89049032123451234512345678901235", iccid: "89148000000842590078" };
/** The download to this device takes longer than the tests. */
export const SLOW = { eid: "89049032007008882600086299134038", iccid: "89148000004292933829" };

const BINARY = resolve(
  process.env["THINGSPACE_GATEWAY"] ?? "../../target/debug/thingspace-gateway",
);
/** The longest wait for anything that does happen. The machine may be slow. */
const PATIENCE_MS = 60_000;

/** Waits for a condition. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  const end = performance.now() + PATIENCE_MS;
  while (!condition()) {
    if (performance.now() > end) throw new Error(`waited too long: ${what}`);
    await sleep(10);
  }
}

/** A directory that is deleted after the test. */
export async function directory(t: TestContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), "client-"));
  t.after(() => rm(path, { recursive: true }));
  return path;
}

/** A client that is closed after the test. */
export function client(
  t: TestContext,
  target: string,
  credentials: Credentials = insecure(),
  options: ConnectOptions = {},
): Client {
  const made = connect(target, credentials, options);
  t.after(() => {
    made.close();
  });
  return made;
}

/** A gateway of the command `dev`. It is killed after the test. */
export class Gateway {
  readonly #process: ChildProcess;
  readonly address: string;

  private constructor(child: ChildProcess, address: string) {
    this.#process = child;
    this.address = address;
  }

  static async start(t: TestContext, ...options: string[]): Promise<Gateway> {
    const child = spawn(BINARY, ["dev", ...options], { stdio: ["ignore", "pipe", "ignore"] });
    t.after(() => child.kill("SIGKILL"));
    let address = "";
    createInterface({ input: child.stdout }).on("line", (line) => {
      address = /^gRPC +(\S+)$/.exec(line)?.[1] ?? address;
    });
    await until(() => address !== "" || child.exitCode !== null, "the gateway");
    if (child.exitCode !== null) throw new Error("the gateway has ended");
    return new Gateway(child, address);
  }

  async kill(): Promise<void> {
    this.#process.kill("SIGKILL");
    await once(this.#process, "exit");
  }
}

export type OrderCall = ServerUnaryCall<DownloadProfileRequest, DownloadProfileResponse>;
export type WatchCall = ServerWritableStream<WatchRequestRequest, WatchRequestResponse>;

/** What the peer answers to its n-th call, from 0: an order's answer, or an error. */
export interface Answers {
  order?: (call: OrderCall, n: number) => DownloadProfileResponse | Failure | Promise<Failure>;
  watch?: (call: WatchCall, n: number) => void;
}

/** A server on a real socket that answers as a test wants. */
export class Peer {
  readonly #server = new Server();
  readonly orders: OrderCall[] = [];
  readonly watches: WatchCall[] = [];
  address = "";

  static async start(
    t: TestContext,
    answers: Answers,
    credentials: ServerCredentials = ServerCredentials.createInsecure(),
    listen = "127.0.0.1:0",
  ): Promise<Peer> {
    const peer = new Peer();
    const service: EsimServiceServer = {
      downloadProfile: (call, respond) => {
        const n = peer.orders.push(call) - 1;
        void Promise.resolve(answers.order?.(call, n) ?? failure(status.UNIMPLEMENTED)).then(
          (answer) => {
            if ("requestId" in answer) respond(null, answer);
            else respond(answer);
          },
        );
      },
      getRequestStatus: (_call, respond) => {
        respond(failure(status.UNIMPLEMENTED));
      },
      watchRequest: (call) => {
        answers.watch?.(call, peer.watches.push(call) - 1);
      },
    };
    peer.#server.addService(EsimServiceService, service);
    const port = await new Promise<number>((done, fail) => {
      peer.#server.bindAsync(listen, credentials, (error, bound) => {
        if (error) fail(error);
        else done(bound);
      });
    });
    peer.address = `127.0.0.1:${String(port)}`;
    t.after(() => {
      peer.#server.forceShutdown();
    });
    return peer;
  }

  /** Ends all connections at once. */
  shutdown(): void {
    this.#server.forceShutdown();
  }
}

/** Passes connections on to a server, and counts them. */
export class Relay {
  readonly #sockets = new Set<Socket>();
  address = "";

  static async start(t: TestContext, target: string): Promise<Relay> {
    const relay = new Relay();
    const server = createServer((socket) => {
      const onward = connectSocket(Number(target.split(":")[1]), "127.0.0.1");
      relay.#sockets.add(socket);
      for (const [one, other] of [
        [socket, onward],
        [onward, socket],
      ] as const) {
        one.pipe(other);
        one.on("error", () => other.destroy());
        one.on("close", () => other.destroy());
      }
      socket.on("close", () => relay.#sockets.delete(socket));
    });
    await once(server.listen(0, "127.0.0.1"), "listening");
    relay.address = `127.0.0.1:${String((server.address() as AddressInfo).port)}`;
    t.after(() => server.close());
    return relay;
  }

  /** How many connections are open. */
  get connections(): number {
    return this.#sockets.size;
  }
}

/** An error as the server of grpc-js sends it. */
export interface Failure {
  code: status;
  details: string;
  metadata: Metadata;
}

/** An error without details, as the network or a proxy makes it. */
export function failure(code: status): Failure {
  return { code, details: "a failure", metadata: new Metadata() };
}

/** An error of the gateway. */
export function refusal(
  code: status,
  reason: string,
  more: {
    domain?: string;
    metadata?: Record<string, string>;
    retryDelayMs?: number;
    violations?: { field: string; description: string }[];
    logId?: string;
  } = {},
): Failure {
  const { domain = "thingspace-gateway", metadata = {}, retryDelayMs, violations, logId } = more;
  const details = [["ErrorInfo", ErrorInfo.encode({ reason, domain, metadata }).finish()] as const];
  const add = (name: "RetryInfo" | "BadRequest" | "RequestInfo", value: Uint8Array): void => {
    details.push([name, value] as never);
  };
  if (retryDelayMs !== undefined) {
    const seconds = Math.floor(retryDelayMs / 1000);
    const nanos = (retryDelayMs % 1000) * 1e6;
    add("RetryInfo", RetryInfo.encode({ retryDelay: { seconds, nanos } }).finish());
  }
  if (violations) {
    add(
      "BadRequest",
      BadRequest.encode(BadRequest.fromPartial({ fieldViolations: violations })).finish(),
    );
  }
  if (logId) add("RequestInfo", RequestInfo.encode({ requestId: logId, servingData: "" }).finish());
  const encoded = Status.encode({
    code,
    message: "refused",
    details: details.map(([name, value]) => ({
      typeUrl: `type.googleapis.com/google.rpc.${name}`,
      value: Buffer.from(value),
    })),
  }).finish();
  const trailers = new Metadata();
  trailers.set("grpc-status-details-bin", Buffer.from(encoded));
  return { code, details: "refused", metadata: trailers };
}

/** Ends a stream with an error. */
export function fail(call: WatchCall, error: Failure): void {
  call.emit("error", error);
}

/** Devices with numbered ICCIDs. */
function devices(count: number, from = 0): { identifiers: { iccid: string } }[] {
  return Array.from({ length: count }, (_, n) => ({ identifiers: { iccid: String(from + n) } }));
}

interface Message {
  revision: number;
  devices?: number;
  from?: number;
  token?: string;
  more?: boolean;
  final?: boolean;
}

/** A message of a watch. Its token is `t` and the revision, unless more parts follow. */
export function message(kind: "snapshot" | "change", m: Message): WatchRequestResponse {
  const state = m.final ? RequestState.SUCCEEDED : RequestState.PENDING;
  const value = { state, revision: m.revision, devices: devices(m.devices ?? 1, m.from) };
  return WatchRequestResponse.fromPartial({
    event: { $case: kind, value } as never,
    resumeToken: m.more ? "" : (m.token ?? `t${String(m.revision)}`),
    more: m.more ?? false,
  });
}

/** A heartbeat. */
export function heartbeat(revision: number): WatchRequestResponse {
  return WatchRequestResponse.fromPartial({
    event: { $case: "heartbeat", value: { revision } },
    resumeToken: `t${String(revision)}`,
  });
}
