/**
 * Orders eSIM profiles through thingspace-gateway, and watches them until they are final.
 *
 * @packageDocumentation
 */
export { type Client, connect, type ConnectOptions } from "./client.js";
export {
  type Credentials,
  insecure,
  type InsecureOptions,
  tls,
  type TlsOptions,
  type TokenOptions,
} from "./credentials.js";
export {
  type Code,
  explain,
  type Explanation,
  type FieldViolation,
  GatewayError,
  type Reason,
  UnknownOutcomeError,
} from "./errors.js";
export {
  type DeviceCounts,
  DeviceState,
  type DeviceStatus,
  type RequestChange,
  RequestState,
  type RequestStatus,
} from "./generated/thingspace/esim/v1/esim.js";
export type { LogEntry, Logger } from "./logger.js";
export type { Device, Order, Placed } from "./order.js";
export { FileTokenStore, type TokenStore } from "./token-store.js";
export type { Change, Snapshot, Update, Watch, WatchOptions } from "./watch.js";
