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

/**
 * Whether an attempt says that the order may be placed (true), that it is not placed (false), or
 * nothing about it (undefined).
 */
function mayBePlaced({ reason, metadata }: Explanation): boolean | undefined {
  switch (reason) {
    case "":
    case "ORDER_IN_PROGRESS":
    case "ORDER_OUTCOME_UNKNOWN":
    case "INTERNAL":
    case "SLOW_READER":
    case "STREAM_AGE":
      return true;
    case "DEADLINE":
      return metadata["nothingSent"] === "true" ? undefined : true;
    // The gateway answers these only after it has found that no order with this key was sent.
    case "UPSTREAM_THROTTLED":
    case "UPSTREAM_UNAVAILABLE":
    case "STORE_FULL":
      return false;
    // For example OVERLOADED: this attempt sent nothing, and an earlier one may have.
    default:
      return undefined;
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
  let unknown = false;
  for (;;) {
    try {
      const attemptMs = Math.min(LONGEST_ATTEMPT_MS, end - performance.now());
      const { requestId, replayed } = await download(stub, request, attemptMs, signal);
      return { requestId, replayed };
    } catch (error) {
      signal.throwIfAborted();
      if (!isServiceError(error)) throw error;
      const explanation = explain(error);
      const { code, reason, metadata, safeToRepeat } = explanation;
      if (metadata["orderId"]) known.orderId = metadata["orderId"];
      if (metadata["requestId"]) known.requestId = metadata["requestId"];
      unknown = mayBePlaced(explanation) ?? unknown;
      const defect = code === "INTERNAL" && reason === "INTERNAL";
      if (!safeToRepeat && !defect) throw new GatewayError(explanation, { cause: error });
      const pauseMs = backoff.next();
      const waitMs = (explanation.retryDelayMs ?? pauseMs) + jitter(pauseMs);
      if (defect || performance.now() + waitMs >= end) {
        if (unknown) throw new UnknownOutcomeError(known, explanation, { cause: error });
        throw new GatewayError(explanation, { cause: error });
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
