import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test, type TestContext } from "node:test";
import { promisify, inspect } from "node:util";

import { ServerCredentials } from "@grpc/grpc-js";

import {
  connect,
  explain,
  insecure,
  type LogEntry,
  tls,
  UnknownOutcomeError,
} from "../src/index.js";
import { grpcTarget, isLoopback } from "../src/target.js";
import { ACCOUNT, client, DEVICE, directory, type OrderCall, Peer } from "./support.js";

const ORDER = { account: ACCOUNT, devices: [DEVICE], idempotencyKey: "key-1" };
const PLACED = { requestId: "request-1", replayed: false };
const TOKEN = "aaaa.bbbb.cccc";

test("host:port becomes a name that DNS resolves, and schemes of gRPC stay", () => {
  for (const [target, expected] of [
    ["127.0.0.1:50051", "dns:///127.0.0.1:50051"],
    ["gateway.example.com:50051", "dns:///gateway.example.com:50051"],
    ["localhost", "dns:///localhost"],
    ["[::1]:50051", "dns:///[::1]:50051"],
    ["unix:50051", "dns:///unix:50051"],
    ["dns:///gateway:50051", "dns:///gateway:50051"],
    ["dns:gateway:50051", "dns:gateway:50051"],
    ["ipv4:127.0.0.1:1,127.0.0.1:2", "ipv4:127.0.0.1:1,127.0.0.1:2"],
    ["unix:/run/gateway.sock", "unix:/run/gateway.sock"],
    ["unix:///run/gateway.sock", "unix:///run/gateway.sock"],
  ] as const) {
    assert.equal(grpcTarget(target), expected);
  }
  for (const target of ["https://gateway:50051", "gateway/path", ""]) {
    assert.throws(() => connect(target, insecure()), TypeError);
  }
});

test("a token is sent in plaintext to this machine only, unless the risk is accepted", async (t) => {
  for (const target of [
    "dns:///127.0.0.1:1",
    "dns:///localhost:1",
    "dns:///localhost",
    "dns:///[::1]:1",
    "ipv4:127.0.0.1:1,127.0.0.2:2",
    "ipv6:[::1]:1",
    "unix:/run/gateway.sock",
  ]) {
    assert(isLoopback(target), target);
  }
  for (const target of [
    "dns:///gateway:1",
    "dns:///localhost.example.com:1",
    "dns:///127.0.0.1.example.com:1",
    "dns://127.0.0.1/gateway:1",
    "ipv4:127.0.0.1:1,10.0.0.1:1",
  ]) {
    assert(!isLoopback(target), target);
  }
  const tokenFile = join(await directory(t), "token");
  await writeFile(tokenFile, TOKEN);
  assert.throws(
    () => connect("gateway:50051", insecure({ tokenFile })),
    /in plaintext to gateway:50051/,
  );
  connect("gateway:50051", insecure({ tokenFile, allowTokenOverPlaintext: true })).close();
  connect("gateway:50051", tls({ tokenFile })).close();
  connect("gateway:50051", insecure()).close();
});

test("the file of the token is read for each call", async (t) => {
  const peer = await Peer.start(t, { order: () => PLACED });
  const tokenFile = join(await directory(t), "token");
  await writeFile(tokenFile, ` ${TOKEN}\n`);
  const one = client(t, peer.address, insecure({ tokenFile }));
  await one.order(ORDER);
  await writeFile(tokenFile, "dddd\n");
  await one.order(ORDER);
  const sent = peer.orders.map((call) => call.metadata.get("authorization"));
  assert.deepEqual(sent, [[`Bearer ${TOKEN}`], ["Bearer dddd"]]);
});

test("a token that cannot be read is an error without its content", async (t) => {
  const peer = await Peer.start(t, { order: () => PLACED });
  const tokenFile = join(await directory(t), "token");
  for (const content of ["", " \n", `${TOKEN}\n${TOKEN}`, `${TOKEN}ü`]) {
    await writeFile(tokenFile, content);
    assert.throws(
      () => connect(peer.address, insecure({ tokenFile })),
      (error) =>
        error instanceof Error &&
        error.message.includes(tokenFile) &&
        !inspect(error).includes(TOKEN),
    );
  }
  assert.throws(
    () => connect(peer.address, insecure({ tokenFile: "/none" })),
    /cannot read the token.*\/none/,
  );

  await writeFile(tokenFile, TOKEN);
  const log: LogEntry[] = [];
  const credentials = insecure({ tokenFile });
  const one = client(t, peer.address, credentials, { logger: (entry) => log.push(entry) });
  await rm(tokenFile);
  await assert.rejects(one.order({ ...ORDER, timeoutMs: 2000 }), (error) => {
    const { code, reason, message } = explain(error);
    assert.deepEqual([code, reason], ["UNKNOWN", ""]);
    assert.match(message, /cannot read the token: ENOENT/);
    return true;
  });
  assert.equal(peer.orders.length, 0);
  assert(log.length > 0);
  // The file is there again.
  const placed = one.order(ORDER);
  await writeFile(tokenFile, TOKEN);
  assert.deepEqual(await placed, PLACED);
  assert(!inspect([one, credentials, log], { depth: 9, showHidden: true }).includes(TOKEN));
});

/** Makes an authority, and certificates of it, in a folder. */
class Authority {
  constructor(readonly folder: string) {}

  async create(): Promise<this> {
    const subject = ["-subj", "/CN=authority", "-days", "2"];
    await this.#openssl(
      "req",
      "-x509",
      "-nodes",
      ...CURVE,
      "-keyout",
      "ca.key",
      "-out",
      "ca.pem",
      ...subject,
    );
    return this;
  }

  /** Replaces the certificate NAME.pem and its key NAME.key. */
  async sign(name: string, subject = name): Promise<void> {
    const request = ["-keyout", "new.key", "-out", "new.csr", "-subj", `/CN=${subject}`];
    await this.#openssl("req", "-new", "-nodes", ...CURVE, ...request);
    await writeFile(this.path("new.ext"), "subjectAltName=IP:127.0.0.1");
    const signer = ["-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2", "-extfile", "new.ext"];
    await this.#openssl("x509", "-req", "-in", "new.csr", "-out", "new.pem", ...signer);
    await rename(this.path("new.key"), this.path(`${name}.key`));
    await rename(this.path("new.pem"), this.path(`${name}.pem`));
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  async #openssl(...args: string[]): Promise<void> {
    await promisify(execFile)("openssl", args, { cwd: this.folder });
  }
}

const CURVE = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];

/** A server that demands a client certificate, and the names in those that it has got. */
async function tlsPeer(
  t: TestContext,
  authority: Authority,
  listen?: string,
): Promise<[Peer, unknown[]]> {
  const read = (name: string): Promise<Buffer> => readFile(authority.path(name));
  const pair = { private_key: await read("server.key"), cert_chain: await read("server.pem") };
  const credentials = ServerCredentials.createSsl(await read("ca.pem"), [pair], true);
  const subjects: unknown[] = [];
  const order = (call: OrderCall): typeof PLACED => {
    subjects.push(call.getAuthContext().sslPeerCertificate?.subject.CN);
    return PLACED;
  };
  return [await Peer.start(t, { order }, credentials, listen), subjects];
}

test("new connections use the client certificate that is in the files then", async (t) => {
  const authority = await new Authority(await directory(t)).create();
  await authority.sign("server");
  await authority.sign("client", "first");
  const credentials = tls({
    caFile: authority.path("ca.pem"),
    certFile: authority.path("client.pem"),
    keyFile: authority.path("client.key"),
  });
  const [first, subjects] = await tlsPeer(t, authority);
  const one = client(t, first.address, credentials);
  await one.order(ORDER);
  assert.deepEqual(subjects, ["first"]);

  await authority.sign("client", "second");
  for (;;) {
    first.shutdown();
    const [peer, later] = await tlsPeer(t, authority, first.address);
    await one.order(ORDER);
    if (later[0] === "second") break;
    peer.shutdown();
  }
});

test("a server that the authority has not signed gets no order", async (t) => {
  const authority = await new Authority(await directory(t)).create();
  await authority.sign("server");
  await authority.sign("client");
  const [peer] = await tlsPeer(t, authority);
  const other = await new Authority(await directory(t)).create();
  const one = client(t, peer.address, tls({ caFile: other.path("ca.pem") }));
  await assert.rejects(one.order({ ...ORDER, timeoutMs: 1500 }), UnknownOutcomeError);
  assert.equal(peer.orders.length, 0);
});

test("files of TLS that are missing or wrong are an error at once", async (t) => {
  const folder = await directory(t);
  await writeFile(join(folder, "wrong.pem"), "wrong");
  const wrong = join(folder, "wrong.pem");
  assert.throws(() => tls({ caFile: "/none" }), /ENOENT.*\/none/);
  assert.throws(() => tls({ certFile: wrong, keyFile: wrong }), /PEM|no start line/);
  assert.throws(() => tls({ certFile: wrong }), /certFile and keyFile must be set together/);
});
