import assert from "node:assert/strict";
import { readdir } from "node:fs/promises";
import { test, type TestContext } from "node:test";

import { status } from "@grpc/grpc-js";

import {
  type Client,
  FileTokenStore,
  GatewayError,
  type LogEntry,
  RequestState,
  type Update,
} from "../src/index.js";
import type { WatchRequestResponse } from "../src/generated/thingspace/esim/v1/esim.js";
import {
  ACCOUNT,
  client,
  DEVICE,
  directory,
  fail,
  failure,
  FAILING,
  Gateway,
  heartbeat,
  message,
  Peer,
  refusal,
  Relay,
  SLOW,
  until,
  type WatchCall,
} from "./support.js";

const REQUEST = { account: ACCOUNT, requestId: "request-1" };
const DRAINING = refusal(status.UNAVAILABLE, "DRAINING");

async function place(one: Client, ...devices: { eid: string; iccid: string }[]): Promise<string> {
  const order = { account: ACCOUNT, devices, idempotencyKey: crypto.randomUUID() };
  return (await one.order(order)).requestId;
}

async function all(watch: AsyncIterable<Update>): Promise<Update[]> {
  const updates: Update[] = [];
  for await (const update of watch) updates.push(update);
  return updates;
}

const revisions = (updates: Update[]): string[] =>
  updates.map(({ kind, content }) => `${kind} ${String(content.revision)}`);

/** The changes in updates. A watch that continues may get several of them in one update. */
const changes = (updates: Update[]): unknown[] =>
  updates.flatMap(({ kind, content }) =>
    content.devices.map(({ identifiers, state }) => [kind, identifiers?.iccid, state]),
  );

/** Watches the request of a peer that answers its n-th stream, and returns the updates. */
async function watchPeer(
  t: TestContext,
  watch: (call: WatchCall, n: number) => void,
  more: { token?: string; idleTimeoutMs?: number; log?: LogEntry[] } = {},
): Promise<{ updates: Update[]; tokens: string[] }> {
  const peer = await Peer.start(t, { watch });
  const { log, ...options } = more;
  const one = client(t, peer.address, undefined, { logger: (entry) => log?.push(entry) });
  const updates = await all(one.watch({ ...REQUEST, ...options }));
  return { updates, tokens: peer.watches.map(({ request }) => request.resumeToken) };
}

test("a watch yields a snapshot, every change, and ends after the final state", async (t) => {
  const gateway = await Gateway.start(t, "--listen", "127.0.0.1:0");
  const one = client(t, gateway.address);
  const requestId = await place(one, DEVICE, FAILING);
  const updates = await all(one.watch({ account: ACCOUNT, requestId }));
  const [first, last] = [updates.at(0), updates.at(-1)];
  assert(first?.kind === "snapshot");
  assert.equal(first.content.requestId, requestId);
  assert.deepEqual(
    first.content.devices.map(({ identifiers }) => identifiers?.iccid),
    [DEVICE.iccid, FAILING.iccid],
  );
  assert(updates.slice(1).every(({ kind }) => kind === "change"));
  assert.equal(last?.content.state, RequestState.PARTIALLY_SUCCEEDED);
  assert.deepEqual(last.content.counts, { total: 2, pending: 0, succeeded: 1, failed: 1 });

  // Another client continues after any of them.
  for (const [n, { token }] of updates.entries()) {
    const rest = await all(
      client(t, gateway.address).watch({ account: ACCOUNT, requestId, token }),
    );
    assert.deepEqual(changes(rest), changes(updates.slice(n + 1)));
  }
});

test("a watch is resumed when the gateway was killed and starts again", async (t) => {
  const store = `${await directory(t)}/store.redb`;
  const gateway = await Gateway.start(t, "--listen", "127.0.0.1:0", "--store", store);
  const log: LogEntry[] = [];
  const one = client(t, gateway.address, undefined, { logger: (entry) => log.push(entry) });
  const watch = one.watch({ account: ACCOUNT, requestId: await place(one, SLOW) });
  assert.equal((await watch.next()).value?.content.revision, 1);
  const next = watch.next();
  await gateway.kill();
  await until(() => log.length > 0, "the end of the stream");
  await Gateway.start(t, "--listen", gateway.address, "--store", store);
  await one.order({ account: ACCOUNT, devices: [DEVICE], idempotencyKey: "key-2" });
  await watch.return();
  assert.deepEqual(await next, { done: true, value: undefined });
  assert.equal(log[0]?.level, "debug");
  assert(log.every(({ code, reason }) => code === "UNAVAILABLE" && reason === ""));
});

test("parts of a revision are merged, and incomplete ones are dropped", async (t) => {
  const { updates, tokens } = await watchPeer(t, (call, n) => {
    if (n === 0) {
      call.write(message("snapshot", { revision: 4, devices: 2, more: true }));
      call.write(message("snapshot", { revision: 4, devices: 2, from: 2, more: true }));
      call.write(message("snapshot", { revision: 4, devices: 1, from: 4 }));
      call.write(message("change", { revision: 6, devices: 3, more: true }));
      fail(call, DRAINING);
    } else {
      call.write(message("change", { revision: 6, devices: 3, more: true }));
      call.write(message("change", { revision: 6, devices: 1, from: 3, final: true }));
      call.end();
    }
  });
  assert.deepEqual(revisions(updates), ["snapshot 4", "change 6"]);
  const iccids = updates.map(({ content }) =>
    content.devices.map((device) => device.identifiers?.iccid),
  );
  assert.deepEqual(iccids, [
    ["0", "1", "2", "3", "4"],
    ["0", "1", "2", "3"],
  ]);
  assert.deepEqual(
    updates.map(({ token }) => token),
    ["t4", "t6"],
  );
  assert.equal(updates[1]?.content.state, RequestState.SUCCEEDED);
  assert.deepEqual(tokens, ["", "t4"]);
});

test("heartbeats are not delivered, and a watch is resumed after them", async (t) => {
  const { updates, tokens } = await watchPeer(t, (call, n) => {
    if (n === 0) call.write(message("snapshot", { revision: 1 }));
    call.write(heartbeat(n + 1));
    if (n < 2) fail(call, failure(status.UNKNOWN));
    else call.end();
  });
  assert.deepEqual(revisions(updates), ["snapshot 1"]);
  assert.deepEqual(tokens, ["", "t1", "t2"]);
});

test("a token that the gateway does not accept is dropped, and no revision comes twice", async (t) => {
  const { updates, tokens } = await watchPeer(
    t,
    (call, n) => {
      if (call.request.resumeToken === "old" || n === 2) {
        fail(call, refusal(status.INVALID_ARGUMENT, "INVALID_RESUME_TOKEN"));
      } else if (n === 1) {
        call.write(message("snapshot", { revision: 3 }));
        fail(call, DRAINING);
      } else {
        call.write(message("snapshot", { revision: 3 }));
        call.write(message("change", { revision: 4, final: true }));
        call.end();
      }
    },
    { token: "old" },
  );
  assert.deepEqual(revisions(updates), ["snapshot 3", "change 4"]);
  assert.deepEqual(tokens, ["old", "", "t3", ""]);
});

test("a watch resumes once with new credentials after its own were accepted", async (t) => {
  const expired = refusal(status.UNAUTHENTICATED, "CALLER_UNAUTHENTICATED");
  const peer = await Peer.start(t, {
    watch: (call, n) => {
      if (n === 0) call.write(message("snapshot", { revision: 1 }));
      fail(call, expired);
    },
  });
  const watch = client(t, peer.address).watch(REQUEST);
  assert.equal((await watch.next()).value?.content.revision, 1);
  await assert.rejects(watch.next(), (error) => {
    assert(error instanceof GatewayError);
    return error.explanation.reason === "CALLER_UNAUTHENTICATED";
  });
  assert.deepEqual(await watch.next(), { done: true, value: undefined });
  assert.equal(peer.watches.length, 2);
});

for (const [code, reason] of [
  [status.NOT_FOUND, "REQUEST_NOT_FOUND"],
  [status.PERMISSION_DENIED, "CALLER_NOT_ALLOWED"],
  [status.UNAUTHENTICATED, "CALLER_UNAUTHENTICATED"],
  [status.FAILED_PRECONDITION, "STILL_PENDING"],
  [status.INVALID_ARGUMENT, "INVALID_RESUME_TOKEN"],
  [status.INTERNAL, "INTERNAL"],
] as const) {
  test(`${reason} ends a watch`, async (t) => {
    const refused = refusal(code, reason);
    const peer = await Peer.start(t, {
      watch: (call) => {
        fail(call, refused);
      },
    });
    await assert.rejects(all(client(t, peer.address).watch(REQUEST)), (error) => {
      assert(error instanceof GatewayError && error.cause instanceof Error);
      return error.explanation.reason === reason;
    });
    assert.equal(peer.watches.length, 1);
  });
}

test("the pauses before a resume grow, start again after a message, and follow the gateway", async (t) => {
  const log: LogEntry[] = [];
  const busy = refusal(status.RESOURCE_EXHAUSTED, "OVERLOADED", { retryDelayMs: 1200 });
  await watchPeer(
    t,
    (call, n) => {
      if (n < 2) {
        fail(call, failure(status.INTERNAL));
      } else if (n === 2) {
        call.write(message("snapshot", { revision: 1 }));
        fail(call, failure(status.INTERNAL));
      } else if (n === 3) {
        fail(call, busy);
      } else {
        call.end();
      }
    },
    { log },
  );
  const least = [500, 1000, 500, 1200];
  assert.equal(log.length, least.length);
  for (const [n, ms] of least.entries()) {
    const waitMs = log[n]?.waitMs ?? 0;
    assert(waitMs >= ms && waitMs <= 1.5 * ms + 100, JSON.stringify(log));
  }
});

test("a stream without messages is cancelled and resumed", async (t) => {
  const log: LogEntry[] = [];
  const calls: WatchCall[] = [];
  const { updates, tokens } = await watchPeer(
    t,
    (call, n) => {
      calls.push(call);
      if (n === 0) call.write(message("snapshot", { revision: 1 }));
      if (n > 0) call.end();
    },
    { idleTimeoutMs: 200, log },
  );
  assert.deepEqual(revisions(updates), ["snapshot 1"]);
  assert.deepEqual(tokens, ["", "t1"]);
  await until(() => calls[0]?.cancelled === true, "the cancellation at the peer");
  assert.deepEqual(
    log.map(({ code, reason }) => [code, reason]),
    [["DEADLINE_EXCEEDED", ""]],
  );
});

test("a signal, return and close end a watch at once, also between streams", async (t) => {
  const peer = await Peer.start(t, {
    watch: (call) => {
      if (call.request.requestId === "open") call.write(message("snapshot", { revision: 1 }));
      else fail(call, failure(status.INTERNAL));
    },
  });
  const log: LogEntry[] = [];
  const one = client(t, peer.address, undefined, { logger: (entry) => log.push(entry) });
  const reason = new Error("the user has left");
  for (const requestId of ["open", "broken"]) {
    for (const end of ["signal", "return", "close"]) {
      log.length = 0;
      const opened = peer.watches.length;
      const controller = new AbortController();
      const user =
        end === "close" ? client(t, peer.address, undefined, { logger: (e) => log.push(e) }) : one;
      const watch = user.watch({ account: ACCOUNT, requestId, signal: controller.signal });
      if (requestId === "open") await watch.next();
      const next = watch.next();
      if (requestId === "broken") await until(() => log.length > 0, "the pause");
      if (end === "signal") {
        controller.abort(reason);
        await assert.rejects(next, reason);
      } else if (end === "return") {
        assert.deepEqual(await watch.return(), { done: true, value: undefined });
        assert.deepEqual(await next, { done: true, value: undefined });
      } else {
        user.close();
        await assert.rejects(next, { message: "the client is closed" });
      }
      assert.deepEqual(await watch.next(), { done: true, value: undefined });
      const call = peer.watches[opened];
      if (requestId === "open") await until(() => call?.cancelled === true, "the cancellation");
      assert.equal(peer.watches.length, opened + 1);
    }
  }
});

test("leaving the loop ends the stream", async (t) => {
  const peer = await Peer.start(t, {
    watch: (call) => call.write(message("snapshot", { revision: 1 })),
  });
  for await (const update of client(t, peer.address).watch(REQUEST)) {
    assert.equal(update.token, "t1");
    break;
  }
  await until(() => peer.watches[0]?.cancelled === true, "the cancellation at the peer");
});

test("a stored token is that of the last update whose processing is complete", async (t) => {
  const gateway = await Gateway.start(t, "--listen", "127.0.0.1:0");
  const one = client(t, gateway.address);
  const folder = await directory(t);
  const tokenStore = new FileTokenStore(folder);
  const requestId = await place(one, DEVICE, FAILING);
  const options = { account: ACCOUNT, requestId, tokenStore };
  await assert.rejects(async () => {
    for await (const { content } of one.watch(options)) {
      if (content.revision > 1) throw new Error("a failure while the update is processed");
    }
  }, /a failure while/);
  assert.equal((await readdir(folder)).length, 1);
  const rest = await all(client(t, gateway.address).watch(options));
  assert.equal(rest[0]?.kind, "change");
  assert(changes(rest).length >= 2);
  assert.equal(rest.at(-1)?.content.state, RequestState.PARTIALLY_SUCCEEDED);
  assert.deepEqual(await readdir(folder), []);
});

test("an error of the token store ends a watch", async (t) => {
  const peer = await Peer.start(t, {
    watch: (call) => call.write(message("snapshot", { revision: 1 })),
  });
  const full = new Error("the disk is full");
  const tokenStore = {
    load: () => Promise.resolve(undefined),
    save: () => Promise.reject(full),
    delete: () => Promise.resolve(),
  };
  await assert.rejects(all(client(t, peer.address).watch({ ...REQUEST, tokenStore })), full);
  await until(() => peer.watches[0]?.cancelled === true, "the cancellation at the peer");
});

test("a slow consumer makes the gateway wait, and delays no other watch", async (t) => {
  const MESSAGES = 500;
  const updateOf = (revision: number): WatchRequestResponse =>
    message(revision === 1 ? "snapshot" : "change", { revision, devices: 400 });
  const connections = new Set<string>();
  let sent = 0;
  const peer = await Peer.start(t, {
    watch: (call) => {
      connections.add(call.getPeer());
      if (call.request.requestId === "fast") {
        for (let revision = 1; revision <= 20; revision += 1) call.write(updateOf(revision));
        call.end();
        return;
      }
      const write = (): void => {
        while (sent < MESSAGES) {
          sent += 1;
          if (!call.write(updateOf(sent))) {
            call.once("drain", write);
            return;
          }
        }
        call.end();
      };
      write();
    },
  });
  const one = client(t, peer.address);
  const slow = one.watch({ ...REQUEST, requestId: "slow" });
  await slow.next();
  const fast = await all(one.watch({ ...REQUEST, requestId: "fast" }));
  assert.equal(fast.length, 20);
  assert.equal(connections.size, 1);
  assert(sent < 100, `the peer could send ${String(sent)} messages`);
  const rest = await all(slow);
  assert.equal(rest.length, MESSAGES - 1);
});

test("a connection has at most 100 watches, and one without watches is closed", async (t) => {
  const peer = await Peer.start(t, {
    order: () => ({ requestId: "request-1", replayed: false }),
    watch: (call) => call.write(message("snapshot", { revision: 1 })),
  });
  const relay = await Relay.start(t, peer.address);
  const one = client(t, relay.address);
  await one.order({ account: ACCOUNT, devices: [DEVICE], idempotencyKey: "key-1" });
  const unary = peer.orders[0]?.getPeer() ?? "";
  const watches = Array.from({ length: 101 }, () => one.watch(REQUEST));
  await Promise.all(watches.map((watch) => watch.next()));
  const counts = new Map<string, number>();
  for (const call of peer.watches)
    counts.set(call.getPeer(), (counts.get(call.getPeer()) ?? 0) + 1);
  assert.deepEqual(
    [...counts.values()].sort((a, b) => a - b),
    [1, 100],
  );
  assert(!counts.has(unary));

  assert.equal(relay.connections, 3);
  await watches[100]?.return();
  await until(() => relay.connections === 2, "the end of the second connection");
  await Promise.all(watches.map((watch) => watch.return()));
  await one.order({ account: ACCOUNT, devices: [DEVICE], idempotencyKey: "key-1" });
  assert.equal(relay.connections, 2);
  one.close();
  await until(() => relay.connections === 0, "the end of all connections");
});
