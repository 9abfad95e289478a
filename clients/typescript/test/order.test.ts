import assert from "node:assert/strict";
import { test } from "node:test";

import { status } from "@grpc/grpc-js";

import { GatewayError, type LogEntry, UnknownOutcomeError } from "../src/index.js";
import {
  ACCOUNT,
  client,
  DEVICE,
  failure,
  FAILING,
  Gateway,
  Peer,
  refusal,
  until,
} from "./support.js";

const ORDER = { account: ACCOUNT, devices: [DEVICE], idempotencyKey: "key-1" };
const PLACED = { requestId: "request-1", replayed: false };
const UNKNOWN = refusal(status.FAILED_PRECONDITION, "ORDER_OUTCOME_UNKNOWN", {
  metadata: { orderId: "order-1", sentTime: "2026-01-01T00:00:00Z" },
});

test("an order is placed once for its key", async (t) => {
  const gateway = await Gateway.start(t, "--listen", "127.0.0.1:0");
  const one = client(t, gateway.address);
  const first = await one.order(ORDER);
  assert.equal(first.replayed, false);
  assert.deepEqual(await one.order(ORDER), { requestId: first.requestId, replayed: true });
  assert.deepEqual(await client(t, gateway.address).order(ORDER), {
    requestId: first.requestId,
    replayed: true,
  });

  await assert.rejects(one.order({ ...ORDER, devices: [FAILING] }), (error) => {
    assert(error instanceof GatewayError && !(error instanceof UnknownOutcomeError));
    assert.equal(error.explanation.reason, "IDEMPOTENCY_KEY_REUSED");
    assert.equal(error.explanation.safeToRepeat, false);
    return true;
  });
  await assert.rejects(one.order({ ...ORDER, idempotencyKey: "" }), (error) => {
    assert(error instanceof GatewayError);
    assert.equal(error.explanation.reason, "INVALID_FIELD");
    assert.deepEqual(
      error.explanation.violations.map(({ field }) => field),
      ["idempotency_key"],
    );
    return true;
  });
});

test("an order waits for a gateway that starts later", async (t) => {
  const first = await Gateway.start(t, "--listen", "127.0.0.1:0");
  await first.kill();
  const placed = client(t, first.address).order(ORDER);
  await Gateway.start(t, "--listen", first.address);
  assert.equal((await placed).replayed, false);
});

test("an order is repeated with the same key and all its fields until it is placed", async (t) => {
  const errors = [
    UNKNOWN,
    failure(status.INTERNAL),
    refusal(status.DEADLINE_EXCEEDED, "DEADLINE", { metadata: { nothingSent: "false" } }),
  ];
  const peer = await Peer.start(t, { order: (_, n) => errors[n] ?? PLACED });
  const log: LogEntry[] = [];
  const one = client(t, peer.address, undefined, { logger: (entry) => log.push(entry) });
  const order = {
    ...ORDER,
    devices: [{ ...DEVICE, imei: "123456789012345" }],
    servicePlan: "plan",
  };
  assert.deepEqual(await one.order(order), PLACED);
  assert.equal(peer.orders.length, 4);
  for (const { request } of peer.orders) {
    assert.deepEqual(request, {
      accountName: ACCOUNT,
      devices: [{ ...DEVICE, imei: "123456789012345", mdn: "" }],
      servicePlan: "plan",
      idempotencyKey: "key-1",
      validateOnly: false,
    });
  }
  assert.deepEqual(
    log.map(({ level, code, reason }) => [level, code, reason]),
    [
      ["info", "FAILED_PRECONDITION", "ORDER_OUTCOME_UNKNOWN"],
      ["info", "INTERNAL", ""],
      ["info", "DEADLINE_EXCEEDED", "DEADLINE"],
    ],
  );
  for (const [n, { waitMs }] of log.entries()) {
    assert(waitMs >= 500 * 2 ** n && waitMs <= 750 * 2 ** n, String(waitMs));
  }
  assert(!JSON.stringify(log).includes(DEVICE.iccid));
});

test("each attempt has a deadline of at most 90 s, and never one after the timeout", async (t) => {
  const peer = await Peer.start(t, { order: () => PLACED });
  const one = client(t, peer.address);
  await one.order(ORDER);
  await one.order({ ...ORDER, timeoutMs: 20_000 });
  const left = peer.orders.map((call) => Number(call.getDeadline()) - Date.now());
  assert(left[0] !== undefined && left[0] > 60_000 && left[0] <= 90_000, String(left));
  assert(left[1] !== undefined && left[1] <= 20_000, String(left));
});

test("an order waits as long as the gateway says", async (t) => {
  const busy = refusal(status.RESOURCE_EXHAUSTED, "OVERLOADED", { retryDelayMs: 1 });
  const peer = await Peer.start(t, { order: (_, n) => (n === 0 ? busy : PLACED) });
  const log: LogEntry[] = [];
  const one = client(t, peer.address, undefined, { logger: (entry) => log.push(entry) });
  await one.order(ORDER);
  assert(log[0] && log[0].waitMs <= 251, JSON.stringify(log));
});

test("an order that may be placed ends with its key and ids", async (t) => {
  const peer = await Peer.start(t, { order: () => UNKNOWN });
  const one = client(t, peer.address);
  await assert.rejects(one.order({ ...ORDER, timeoutMs: 1000 }), (error) => {
    assert(error instanceof UnknownOutcomeError && error instanceof GatewayError);
    assert.equal(error.name, "UnknownOutcomeError");
    assert.equal(error.account, ACCOUNT);
    assert.equal(error.idempotencyKey, "key-1");
    assert.equal(error.orderId, "order-1");
    assert.equal(error.requestId, undefined);
    assert.equal(error.explanation.reason, "ORDER_OUTCOME_UNKNOWN");
    assert(error.cause instanceof Error);
    assert.match(
      error.message,
      /^the order may or may not be placed; call again with the same key/,
    );
    return true;
  });
});

test("an attempt that times out leaves the outcome unknown", async (t) => {
  const peer = await Peer.start(t, { order: () => new Promise(() => undefined) });
  await assert.rejects(
    client(t, peer.address).order({ ...ORDER, timeoutMs: 500 }),
    UnknownOutcomeError,
  );
});

test("the outcome stays unknown if a later attempt sent nothing", async (t) => {
  const overloaded = refusal(status.RESOURCE_EXHAUSTED, "OVERLOADED", { retryDelayMs: 400_000 });
  const peer = await Peer.start(t, { order: (_, n) => (n === 0 ? UNKNOWN : overloaded) });
  await assert.rejects(client(t, peer.address).order(ORDER), (error) => {
    assert(error instanceof UnknownOutcomeError);
    assert.equal(error.explanation.reason, "OVERLOADED");
    assert.equal(error.orderId, "order-1");
    return true;
  });
});

for (const [reason, code] of [
  ["UPSTREAM_THROTTLED", status.RESOURCE_EXHAUSTED],
  ["STORE_FULL", status.RESOURCE_EXHAUSTED],
] as const) {
  test(`${reason} shows that the order is not placed`, async (t) => {
    const error = refusal(code, reason, { retryDelayMs: 400_000 });
    const peer = await Peer.start(t, {
      order: (_, n) => (n === 0 ? failure(status.UNKNOWN) : error),
    });
    await assert.rejects(client(t, peer.address).order(ORDER), (thrown) => {
      assert(thrown instanceof GatewayError && !(thrown instanceof UnknownOutcomeError));
      assert.equal(thrown.explanation.reason, reason);
      assert.equal(thrown.explanation.retryDelayMs, 400_000);
      return true;
    });
    assert.equal(peer.orders.length, 2);
  });
}

test("a refusal ends the order at once", async (t) => {
  const refused = refusal(status.INVALID_ARGUMENT, "UPSTREAM_INVALID_INPUT");
  const peer = await Peer.start(t, { order: (_, n) => (n === 0 ? UNKNOWN : refused) });
  await assert.rejects(client(t, peer.address).order(ORDER), (error) => {
    assert(error instanceof GatewayError && !(error instanceof UnknownOutcomeError));
    return error.explanation.reason === "UPSTREAM_INVALID_INPUT";
  });
  assert.equal(peer.orders.length, 2);
});

test("a defect of the gateway leaves the outcome unknown and is not repeated", async (t) => {
  const defect = refusal(status.INTERNAL, "INTERNAL", { logId: "log-1" });
  const peer = await Peer.start(t, { order: () => defect });
  await assert.rejects(client(t, peer.address).order(ORDER), (error) => {
    assert(error instanceof UnknownOutcomeError);
    return error.explanation.logId === "log-1";
  });
  assert.equal(peer.orders.length, 1);
});

test("a signal ends the wait for an order at once, also between attempts", async (t) => {
  const peer = await Peer.start(t, {
    order: (_, n) => (n === 0 ? UNKNOWN : new Promise(() => undefined)),
  });
  const log: LogEntry[] = [];
  const one = client(t, peer.address, undefined, { logger: (entry) => log.push(entry) });
  for (const ready of [() => log.length === 1, () => peer.orders.length === 2]) {
    const controller = new AbortController();
    const placed = one.order({ ...ORDER, signal: controller.signal });
    await until(ready, "the attempt");
    const reason = new Error("the user has left");
    controller.abort(reason);
    await assert.rejects(placed, reason);
  }
  await until(() => peer.orders[1]?.cancelled === true, "the cancellation at the peer");
  await assert.rejects(one.order({ ...ORDER, signal: AbortSignal.abort() }), {
    name: "AbortError",
  });
  assert.equal(peer.orders.length, 2);
});

test("close ends orders and is idempotent", async (t) => {
  const peer = await Peer.start(t, { order: () => new Promise(() => undefined) });
  const one = client(t, peer.address);
  const placed = one.order(ORDER);
  await until(() => peer.orders.length === 1, "the attempt");
  one.close();
  one.close();
  await assert.rejects(placed, { message: "the client is closed" });
  await assert.rejects(one.order(ORDER), { message: "the client is closed" });
  await until(() => peer.orders[0]?.cancelled === true, "the cancellation at the peer");
});
