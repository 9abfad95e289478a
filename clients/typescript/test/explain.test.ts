import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";

import { Metadata, type ServiceError, status } from "@grpc/grpc-js";

import { explain, type Explanation, GatewayError } from "../src/index.js";
import { ErrorReason, GetRequestStatusRequest } from "../src/generated/thingspace/esim/v1/esim.js";
import { SERVICE_CONFIG } from "../src/service-config.js";
import {
  ACCOUNT,
  client,
  DEVICE,
  type Failure,
  failure,
  Gateway,
  Peer,
  refusal,
} from "./support.js";

const serviceError = (error: Failure): ServiceError =>
  Object.assign(new Error(error.details), error);

test("all details of an error that crossed the network are explained", async (t) => {
  const error = refusal(status.INVALID_ARGUMENT, "INVALID_FIELD", {
    metadata: { a: "b" },
    retryDelayMs: 1500,
    violations: [{ field: "devices[0].eid", description: "must be 32 digits" }],
    logId: "log-1",
  });
  const peer = await Peer.start(t, { order: () => error });
  const order = { account: ACCOUNT, devices: [DEVICE], idempotencyKey: "key-1" };
  await assert.rejects(client(t, peer.address).order(order), (thrown) => {
    assert(thrown instanceof GatewayError);
    assert.equal(thrown.message, "INVALID_ARGUMENT INVALID_FIELD: refused");
    assert.deepEqual(explain(thrown), {
      code: "INVALID_ARGUMENT",
      reason: "INVALID_FIELD",
      message: "refused",
      violations: [{ field: "devices[0].eid", description: "must be 32 digits" }],
      retryDelayMs: 1500,
      safeToRepeat: false,
      metadata: { a: "b" },
      logId: "log-1",
    } satisfies Explanation);
    return true;
  });
});

test("errors of the stub are explained", async (t) => {
  const gateway = await Gateway.start(t, "--listen", "127.0.0.1:0");
  const one = client(t, gateway.address);
  const request = GetRequestStatusRequest.create({ accountName: ACCOUNT, requestId: "none" });
  const error = await new Promise((done) => one.stub.getRequestStatus(request, done));
  const { code, reason, safeToRepeat } = explain(error);
  assert.deepEqual([code, reason, safeToRepeat], ["NOT_FOUND", "REQUEST_NOT_FOUND", false]);

  const cancelled = await new Promise((done) => {
    one.stub.getRequestStatus(request, done).cancel();
  });
  assert.deepEqual(
    [explain(cancelled).code, explain(cancelled).safeToRepeat],
    ["CANCELLED", false],
  );

  const closed = new Promise((done) => one.stub.getRequestStatus(request, done));
  one.close();
  assert.deepEqual(
    [explain(await closed).code, explain(await closed).safeToRepeat],
    ["CANCELLED", false],
  );
});

test("only errors after which the same call may succeed are safe to repeat", () => {
  const safe = (error: Failure): boolean => explain(serviceError(error)).safeToRepeat;
  const codes = Object.values(status).filter((code) => typeof code === "number");
  const { CANCELLED, UNKNOWN, INTERNAL, UNAVAILABLE, DEADLINE_EXCEEDED } = status;
  assert.deepEqual(
    codes.filter((code) => safe(failure(code))),
    [CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE],
  );
  const reasons = Object.keys(ErrorReason).filter((name) => Number.isNaN(Number(name)));
  const repeatable = (code: status): string[] =>
    reasons.filter((reason) => safe(refusal(code, reason)));
  assert.deepEqual(repeatable(UNAVAILABLE), reasons);
  assert.deepEqual(repeatable(DEADLINE_EXCEEDED), reasons);
  assert.deepEqual(repeatable(status.RESOURCE_EXHAUSTED), [
    "UPSTREAM_THROTTLED",
    "OVERLOADED",
    "STORE_FULL",
  ]);
  assert.deepEqual(repeatable(status.FAILED_PRECONDITION), ["ORDER_OUTCOME_UNKNOWN"]);
  for (const code of [CANCELLED, UNKNOWN, INTERNAL, status.NOT_FOUND]) {
    assert.deepEqual(repeatable(code), []);
  }
});

test("a reason of another domain, and details that cannot be decoded, are no reason", () => {
  const foreign = refusal(status.UNKNOWN, "INTERNAL", { domain: "example.org", retryDelayMs: 2 });
  const { reason, retryDelayMs, safeToRepeat } = explain(serviceError(foreign));
  assert.deepEqual([reason, retryDelayMs, safeToRepeat], ["", 2, true]);

  const broken = failure(status.INTERNAL);
  broken.metadata.set("grpc-status-details-bin", Buffer.from("\xff\xff\xff"));
  assert.deepEqual(explain(serviceError(broken)), {
    code: "INTERNAL",
    reason: "",
    message: "a failure",
    violations: [],
    retryDelayMs: undefined,
    safeToRepeat: true,
    metadata: {},
    logId: "",
  });
});

test("errors that are not of gRPC are not safe to repeat", () => {
  const explained = (error: unknown): unknown[] => {
    const { code, message, safeToRepeat } = explain(error);
    return [code, message, safeToRepeat];
  };
  assert.deepEqual(explained(new TypeError("wrong")), ["UNKNOWN", "wrong", false]);
  assert.deepEqual(explained("text"), ["UNKNOWN", "text", false]);
  assert.deepEqual(explained(AbortSignal.abort().reason), [
    "CANCELLED",
    "This operation was aborted",
    false,
  ]);
  assert.deepEqual(
    explained({ code: 14, details: "no error", metadata: new Metadata() })[2],
    false,
  );
});

test("the service config is that of all clients", async () => {
  assert.equal(SERVICE_CONFIG, await readFile("../service-config.json", "utf8"));
});
