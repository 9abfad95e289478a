import { Metadata } from "@grpc/grpc-js";

import { Backoff, jitter, pause } from "./backoff.js";
import {
  explain,
  type Explanation,
  GatewayError,
  isServiceError,
  UnknownOutcomeError,
} from "./errors.js";
import {
  DownloadProfileRequest,
  type DownloadProfileResponse,
  type EsimServiceClient,
} from "./generated/thingspace/esim/v1/esim.js";
import { logEntry, type Logger } from "./logger.js";

const DEFAULT_TIMEOUT_MS = 5 * 60_000;
const LONGEST_ATTEMPT_MS = 90_000;
/** The least time for an attempt. */
const LAST_ATTEMPT_MS = 1_000;

/** A device of an order. */
export interface Device {
  /** eUICC identifier: 32 digits. */
  readonly eid: string;
  /** Integrated circuit card identifier of the profile: 19 or 20 digits. */
  readonly iccid: string;
  /** International mobile equipment identity: 15 or 16 digits. */
  readonly imei?: string | undefined;
}

/** An order. */
export interface Order {
  /** The ThingSpace billing account, for example `"0000123456-00001"`. */
  readonly account: string;
  /** The devices, 1 to 10,000. */
  readonly devices: readonly Device[];
  /**
   * Your name for this order. Create it before the first call and store it with your own record: the
   * same key never orders twice, also after a restart of your process. A new key is a new order.
   */
  readonly idempotencyKey: string;
  /** The Global service plan of the account. */
  readonly servicePlan?: string | undefined;
  /** How long `order` repeats the call. Default: 5 minutes. */
  readonly timeoutMs?: number | undefined;
  /** Ends your wait, not the order, which may be placed all the same. */
  readonly signal?: AbortSignal | undefined;
}

/** An order that ThingSpace has accepted. */
export interface Placed {
  /** The id of the request, for `watch`. */
  readonly requestId: string;
  /** True if an earlier call with the same key had already placed the order. */
  readonly replayed: boolean;
}

/** Returns whether the order may be placed after an attempt has failed. */
function mayBePlaced(before: boolean, explanation: Explanation): boolean {
  const { code, reason, metadata, safeToRepeat } = explanation;
  switch (reason) {
    case "":
      // The attempt had no answer, unless a proxy has refused it.
      return before || safeToRepeat || code === "CANCELLED";
    case "ORDER_IN_PROGRESS":
    case "ORDER_OUTCOME_UNKNOWN":
    case "INTERNAL":
    case "SLOW_READER":
    case "STREAM_AGE":
      return true;
    case "DEADLINE":
      return before || metadata["nothingSent"] !== "true";
    case "INVALID_FIELD":
    case "IDEMPOTENCY_KEY_REUSED":
      // The gateway would have refused each earlier attempt, too.
      return false;
    default:
      // Before the gateway asks ThingSpace, it looks up the key. So an error of ThingSpace says that
      // no order was placed with the key. The others say only that this attempt has placed nothing.
      return before && !reason.startsWith("UPSTREAM_");
  }
}

/** Repeats an order until its outcome is known, or until its timeout or the signal ends. */
export async function placeOrder(
  stub: EsimServiceClient,
  order: Order,
  signal: AbortSignal,
  log: Logger,
): Promise<Placed> {
  const { account, idempotencyKey } = order;
  const request = DownloadProfileRequest.fromPartial({
    accountName: account,
    devices: order.devices.map(({ eid, iccid, imei }) => ({ eid, iccid, imei: imei ?? "" })),
    servicePlan: order.servicePlan ?? "",
    idempotencyKey,
  });
  const end = performance.now() + (order.timeoutMs ?? DEFAULT_TIMEOUT_MS);
  const backoff = new Backoff();
  const known: { account: string; idempotencyKey: string; orderId?: string; requestId?: string } = {
    account,
    idempotencyKey,
  };
  let placedPerhaps = false;
  for (;;) {
    try {
      const attemptMs = Math.min(LONGEST_ATTEMPT_MS, end - performance.now());
      const { requestId, replayed } = await download(stub, request, attemptMs, signal);
      return { requestId, replayed };
    } catch (error) {
      signal.throwIfAborted();
      if (!isServiceError(error)) throw error;
      const explanation = explain(error);
      const { metadata, retryDelayMs, safeToRepeat } = explanation;
      if (metadata["orderId"]) known.orderId = metadata["orderId"];
      if (metadata["requestId"]) known.requestId = metadata["requestId"];
      placedPerhaps = mayBePlaced(placedPerhaps, explanation);
      const pauseMs = backoff.next();
      // The pause is shortened so that there is time for a last attempt.
      const longestMs = end - performance.now() - LAST_ATTEMPT_MS;
      const waitMs = Math.min((retryDelayMs ?? pauseMs) + jitter(pauseMs), longestMs);
      if (!safeToRepeat || waitMs <= (retryDelayMs ?? 0)) {
        const options = { cause: error };
        if (placedPerhaps) throw new UnknownOutcomeError(known, explanation, options);
        throw new GatewayError(explanation, options);
      }
      log(logEntry("info", "repeating the order with the same key", explanation, waitMs));
      await pause(waitMs, signal);
    }
  }
}

function download(
  stub: EsimServiceClient,
  request: DownloadProfileRequest,
  timeoutMs: number,
  signal: AbortSignal,
): Promise<DownloadProfileResponse> {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const cancel = (): void => {
      call.cancel();
    };
    signal.addEventListener("abort", cancel);
    const options = { deadline: Date.now() + timeoutMs };
    const call = stub.downloadProfile(request, new Metadata(), options, (error, response) => {
      signal.removeEventListener("abort", cancel);
      if (error) reject(error);
      else resolve(response);
    });
  });
}
