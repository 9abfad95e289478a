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

const LATER = { retryDelayMs: 400_000 };
const OVERLOADED = refusal(status.RESOURCE_EXHAUSTED, "OVERLOADED", LATER);
for (const [name, errors, unknown] of [
  ["overloaded", [OVERLOADED], false],
  ["unknown, then overloaded", [UNKNOWN, OVERLOADED], true],
  ["unknown, then full", [UNKNOWN, refusal(status.RESOURCE_EXHAUSTED, "STORE_FULL", LATER)], true],
  [
    "no answer, then throttled",
    [failure(status.UNKNOWN), refusal(status.RESOURCE_EXHAUSTED, "UPSTREAM_THROTTLED", LATER)],
    false,
  ],
  [
    "unknown, then refused by ThingSpace",
    [UNKNOWN, refusal(status.INVALID_ARGUMENT, "UPSTREAM_INVALID_INPUT")],
    false,
  ],
  [
    "unknown, then not allowed",
    [UNKNOWN, refusal(status.PERMISSION_DENIED, "CALLER_NOT_ALLOWED")],
    true,
  ],
  ["unknown, then too large", [UNKNOWN, refusal(status.OUT_OF_RANGE, "MESSAGE_TOO_LARGE")], true],
  ["unknown, then refused by a proxy", [UNKNOWN, failure(status.PERMISSION_DENIED)], true],
  ["a defect", [refusal(status.INTERNAL, "INTERNAL")], true],
  ["malformed", [refusal(status.INTERNAL, "MALFORMED_CALL")], false],
  ["refused by a proxy", [failure(status.PERMISSION_DENIED)], false],
  ["a deadline", [refusal(status.DEADLINE_EXCEEDED, "DEADLINE", LATER)], true],
  [
    "a deadline before anything was sent",
    [
      refusal(status.DEADLINE_EXCEEDED, "DEADLINE", {
        ...LATER,
        metadata: { nothingSent: "true" },
      }),
    ],
    false,
  ],
] as const) {
  const kind = unknown ? "may be placed" : "is not placed";
  test(`an order ${kind} after these errors: ${name}`, async (t) => {
    const peer = await Peer.start(t, { order: (_, n) => errors[n] ?? PLACED });
    await assert.rejects(client(t, peer.address).order(ORDER), (error) => {
      assert(error instanceof GatewayError);
      assert.equal(error instanceof UnknownOutcomeError, unknown);
      assert.equal(error.explanation.code, status[errors.at(-1)?.code ?? 0]);
      return true;
    });
    assert.equal(peer.orders.length, errors.length);
  });
}

test("a pause is shortened so that there is time for a last attempt", async (t) => {
  const peer = await Peer.start(t, { order: (_, n) => (n === 0 ? PLACED : UNKNOWN) });
  const log: LogEntry[] = [];
  const one = client(t, peer.address, undefined, { logger: (entry) => log.push(entry) });
  await one.order(ORDER);
  await assert.rejects(one.order({ ...ORDER, timeoutMs: 2500 }), UnknownOutcomeError);
  // The second pause would be at least 1 s, and less than that is left.
  assert(log[1] && log[1].waitMs < 1000, JSON.stringify(log));
  assert.equal(peer.orders.length, log.length + 2);
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
