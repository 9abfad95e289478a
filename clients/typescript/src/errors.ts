import { type ServiceError, status } from "@grpc/grpc-js";

import {
  BadRequest,
  ErrorInfo,
  RequestInfo,
  RetryInfo,
} from "./generated/google/rpc/error_details.js";
import { Status } from "./generated/google/rpc/status.js";
import type { ErrorReason } from "./generated/thingspace/esim/v1/esim.js";

/** The domain of the reasons in `google.rpc.ErrorInfo`. */
const DOMAIN = "thingspace-gateway";

/** The message of a call that `close` has ended. */
export const CLOSED = "the client is closed";

/** The messages of calls that the caller itself has ended. The first one is that of grpc-js. */
const ENDED_BY_CALLER = ["Cancelled on client", CLOSED];

/** The name of a gRPC status code, for example `"UNAVAILABLE"`. */
export type Code = keyof typeof status;

/**
 * A reason of the gateway, for example `"OVERLOADED"`, or `""` if the error does not come from the
 * gateway. A newer gateway may have more reasons.
 */
export type Reason = keyof typeof ErrorReason | "" | (string & {});

/** A field of a call that is wrong. */
export interface FieldViolation {
  /** The path of the field, for example `"devices[0].eid"`. */
  readonly field: string;
  /** What is wrong with it. */
  readonly description: string;
}

/** What an error means, and whether the call can be repeated. */
export interface Explanation {
  /** The name of the gRPC status code. */
  readonly code: Code;
  /** The gateway's reason. Decide by it, never by the message. */
  readonly reason: Reason;
  /** The text of the error, for people. */
  readonly message: string;
  /** All fields that are wrong, with the reason `INVALID_FIELD`. */
  readonly violations: readonly FieldViolation[];
  /** The shortest time to wait before the call is repeated, if the error has one. */
  readonly retryDelayMs: number | undefined;
  /**
   * True if the same call with the same idempotency key can be repeated, and may succeed without a
   * change by anybody who calls. False for a call that the caller itself has cancelled.
   */
  readonly safeToRepeat: boolean;
  /** The metadata of the gateway's `ErrorInfo`, for example `orderId`. */
  readonly metadata: Readonly<Record<string, string>>;
  /** The id under which the gateway's log has details, or `""`. */
  readonly logId: string;
}

/**
 * An error of a call. `explanation` says what it means, and `cause` is the error of the gRPC
 * library.
 */
export class GatewayError extends Error {
  override readonly name: string = "GatewayError";
  /** What the error means. */
  readonly explanation: Explanation;

  /** Describes the error that `explanation` explains. */
  constructor(explanation: Explanation, options?: ErrorOptions & { message?: string }) {
    const { code, reason, message } = explanation;
    super(options?.message ?? `${reason === "" ? code : `${code} ${reason}`}: ${message}`, options);
    this.explanation = explanation;
  }
}

/**
 * The order may or may not be placed. Call `order` again with the same key: it never orders twice,
 * and returns the outcome when that is known. A new key would be a new order.
 */
export class UnknownOutcomeError extends GatewayError {
  override readonly name = "UnknownOutcomeError";
  /** The account of the order. */
  readonly account: string;
  /** The key to call again with. */
  readonly idempotencyKey: string;
  /** The gateway's id of the order, for its operator, if an error had it. */
  readonly orderId: string | undefined;
  /** The id of the request, if ThingSpace has accepted the order and the gateway said so. */
  readonly requestId: string | undefined;

  /** Describes an order whose last error `explanation` explains. */
  constructor(
    order: { account: string; idempotencyKey: string; orderId?: string; requestId?: string },
    explanation: Explanation,
    options?: ErrorOptions,
  ) {
    const { code, reason, message } = explanation;
    super(explanation, {
      ...options,
      message:
        "the order may or may not be placed; call again with the same key " +
        `(${reason === "" ? code : `${code} ${reason}`}: ${message})`,
    });
    this.account = order.account;
    this.idempotencyKey = order.idempotencyKey;
    this.orderId = order.orderId;
    this.requestId = order.requestId;
  }
}

/**
 * Explains an error of a call: a `GatewayError`, or an error of the generated stub. Any other error
 * has the code `UNKNOWN` (an `AbortError`: `CANCELLED`) and is not safe to repeat.
 */
export function explain(error: unknown): Explanation {
  if (error instanceof GatewayError) return error.explanation;
  if (isServiceError(error)) return explainServiceError(error);
  const aborted = error instanceof Error && error.name === "AbortError";
  return {
    code: aborted ? "CANCELLED" : "UNKNOWN",
    reason: "",
    message: error instanceof Error ? error.message : String(error),
    violations: [],
    retryDelayMs: undefined,
    safeToRepeat: false,
    metadata: {},
    logId: "",
  };
}

/** Whether an error comes from the gRPC library. */
export function isServiceError(error: unknown): error is ServiceError {
  return (
    error instanceof Error &&
    "code" in error &&
    typeof error.code === "number" &&
    "details" in error &&
    "metadata" in error
  );
}

function explainServiceError(error: ServiceError): Explanation {
  const details = decodeDetails(error);
  const code = (status[error.code] as Code | undefined) ?? "UNKNOWN";
  const reason = details.info?.reason ?? "";
  const delay = details.retry?.retryDelay;
  return {
    code,
    reason,
    message: error.details,
    violations: (details.badRequest?.fieldViolations ?? []).map(({ field, description }) => ({
      field,
      description,
    })),
    retryDelayMs: delay && delay.seconds * 1000 + delay.nanos / 1e6,
    safeToRepeat: isSafeToRepeat(code, reason, error.details),
    metadata: details.info?.metadata ?? {},
    logId: details.request?.requestId ?? "",
  };
}

function isSafeToRepeat(code: Code, reason: Reason, details: string): boolean {
  switch (code) {
    case "UNAVAILABLE":
    case "DEADLINE_EXCEEDED":
      return true;
    case "RESOURCE_EXHAUSTED":
      return ["OVERLOADED", "UPSTREAM_THROTTLED", "STORE_FULL"].includes(reason);
    case "FAILED_PRECONDITION":
      return reason === "ORDER_OUTCOME_UNKNOWN";
    case "CANCELLED":
      return reason === "" && !ENDED_BY_CALLER.includes(details);
    // Without a reason the error comes from the network or a proxy.
    case "UNKNOWN":
    case "INTERNAL":
      return reason === "";
    default:
      return false;
  }
}

interface Details {
  info?: ErrorInfo;
  retry?: RetryInfo;
  badRequest?: BadRequest;
  request?: RequestInfo;
}

function decodeDetails(error: ServiceError): Details {
  const details: Details = {};
  const [encoded] = error.metadata.get("grpc-status-details-bin");
  if (!(encoded instanceof Buffer)) return details;
  try {
    for (const { typeUrl, value } of Status.decode(encoded).details) {
      switch (typeUrl.slice(typeUrl.lastIndexOf("/") + 1)) {
        case "google.rpc.ErrorInfo": {
          const info = ErrorInfo.decode(value);
          if (info.domain === DOMAIN) details.info = info;
          break;
        }
        case "google.rpc.RetryInfo":
          details.retry = RetryInfo.decode(value);
          break;
        case "google.rpc.BadRequest":
          details.badRequest = BadRequest.decode(value);
          break;
        case "google.rpc.RequestInfo":
          details.request = RequestInfo.decode(value);
          break;
      }
    }
  } catch {
    // The details are not those of the gateway, so they say nothing.
    return {};
  }
  return details;
}
