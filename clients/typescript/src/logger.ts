import type { Code, Explanation, Reason } from "./errors.js";

/** A line about a call that is repeated or resumed. It has no token and no identity of a device. */
export interface LogEntry {
  /** `"info"` for orders, `"debug"` for watches, which are resumed now and then. */
  readonly level: "debug" | "info";
  /** What happens next. */
  readonly message: string;
  /** The gRPC status code of the error. */
  readonly code: Code;
  /** The gateway's reason, or `""`. */
  readonly reason: Reason;
  /** The pause before the next attempt. */
  readonly waitMs: number;
}

/** Receives a line for each call that is repeated or resumed. */
export type Logger = (entry: LogEntry) => void;

/** Makes the line about an error after which a call is made again. */
export function logEntry(
  level: LogEntry["level"],
  message: string,
  { code, reason }: Explanation,
  waitMs: number,
): LogEntry {
  return { level, message, code, reason, waitMs: Math.round(waitMs) };
}
