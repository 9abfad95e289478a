import { Backoff, jitter, pause } from "./backoff.js";
import { explain, type Explanation, GatewayError, isServiceError } from "./errors.js";
import {
  type EsimServiceClient,
  RequestChange,
  RequestStatus,
  type WatchRequestResponse,
} from "./generated/thingspace/esim/v1/esim.js";
import { logEntry, type Logger } from "./logger.js";
import type { TokenStore } from "./token-store.js";

const DEFAULT_IDLE_TIMEOUT_MS = 60_000;

/** What to watch. */
export interface WatchOptions {
  /** The ThingSpace billing account of the request. */
  readonly account: string;
  /** The id that `order` returned, or the id of a request of the account that another system placed. */
  readonly requestId: string;
  /** The token of the last update that you have processed: the watch continues after it. */
  readonly token?: string | undefined;
  /**
   * Keeps the token, so that another process continues after the last update whose processing is
   * complete. A token of its own (`token`) has precedence.
   */
  readonly tokenStore?: TokenStore | undefined;
  /** After this time without a message, the stream is cancelled and resumed. Default: 60 s. */
  readonly idleTimeoutMs?: number | undefined;
  /** Ends the watch. The iterator then throws the reason of the signal. */
  readonly signal?: AbortSignal | undefined;
}

/** The status of the request: it replaces everything that you know about the request. */
export interface Snapshot {
  readonly kind: "snapshot";
  /** The status, with all devices. */
  readonly content: RequestStatus;
  /** Continues a watch after this update. */
  readonly token: string;
}

/** What has changed since the update before. */
export interface Change {
  readonly kind: "change";
  /** The changed devices in the sequence of their changes, and the state after them. */
  readonly content: RequestChange;
  /** Continues a watch after this update. */
  readonly token: string;
}

/** An update of a watch. */
export type Update = Snapshot | Change;

/** The updates of a request. */
export interface Watch extends AsyncIterableIterator<Update, void, undefined> {
  /** Ends the watch at once, also while `next` waits. A `for await` loop that is left calls it. */
  return(): Promise<IteratorResult<Update, void>>;
}

/** What a watch needs of the client. */
interface Context {
  readonly stub: EsimServiceClient;
  readonly signal: AbortSignal;
  readonly log: Logger;
}

/** The stream had no message for too long. */
class IdleError extends Error {}

/** Yields the updates of a request, each revision once, until the request is final. */
export async function* updates(
  options: WatchOptions,
  { stub, signal, log }: Context,
): AsyncGenerator<Update, void, undefined> {
  const { account, requestId, tokenStore } = options;
  const idleTimeoutMs = options.idleTimeoutMs ?? DEFAULT_IDLE_TIMEOUT_MS;
  let token = options.token ?? (await tokenStore?.load(account, requestId)) ?? "";
  const backoff = new Backoff();
  const revisions = new Revisions();
  let accepted = false;
  for (;;) {
    try {
      const request = { accountName: account, requestId, resumeToken: token };
      const parts = new Parts();
      for await (const message of receive(stub, request, idleTimeoutMs, signal)) {
        backoff.reset();
        accepted = true;
        const update = parts.add(message);
        if (message.resumeToken !== "") token = message.resumeToken;
        if (update === undefined || !revisions.isNew(update)) continue;
        yield update;
        await tokenStore?.save(account, requestId, update.token);
      }
      await tokenStore?.delete(account, requestId);
      return;
    } catch (error) {
      signal.throwIfAborted();
      const explanation = explainEnd(error, idleTimeoutMs);
      if (explanation.reason === "INVALID_RESUME_TOKEN" && token !== "") {
        token = "";
      } else if (explanation.code === "UNAUTHENTICATED" && accepted) {
        // The credentials have expired. If new ones are refused, too, they are wrong.
        accepted = false;
      } else if (!explanation.safeToRepeat) {
        throw new GatewayError(explanation, { cause: error });
      }
      const pauseMs = backoff.next();
      const waitMs = Math.max(explanation.retryDelayMs ?? 0, pauseMs) + jitter(pauseMs);
      log(logEntry("debug", "resuming the watch", explanation, waitMs));
      await pause(waitMs, signal);
    }
  }
}

/** Explains why a stream has ended. Throws an error that does not come from the stream. */
function explainEnd(error: unknown, idleTimeoutMs: number): Explanation {
  if (error instanceof IdleError) {
    const message = `no message for ${String(idleTimeoutMs / 1000)} s`;
    return { ...explain(error), code: "DEADLINE_EXCEEDED", message, safeToRepeat: true };
  }
  if (isServiceError(error)) return explain(error);
  throw error;
}

/** Yields the messages of one stream. The stream is cancelled when the loop over them ends. */
async function* receive(
  stub: EsimServiceClient,
  request: { accountName: string; requestId: string; resumeToken: string },
  idleTimeoutMs: number,
  signal: AbortSignal,
): AsyncGenerator<WatchRequestResponse, void, undefined> {
  signal.throwIfAborted();
  const stream = stub.watchRequest(request);
  const cancel = (): void => {
    stream.cancel();
  };
  signal.addEventListener("abort", cancel);
  // The iterator reports errors. This listener is for the error of the cancellation at the end.
  stream.on("error", () => undefined);
  const messages = stream[Symbol.asyncIterator]() as AsyncIterator<WatchRequestResponse, undefined>;
  try {
    for (;;) {
      const timer = setTimeout(() => stream.destroy(new IdleError()), idleTimeoutMs);
      const next = await messages.next().finally(() => {
        clearTimeout(timer);
      });
      if (next.done) return;
      yield next.value;
    }
  } finally {
    signal.removeEventListener("abort", cancel);
    stream.cancel();
    await messages.return?.();
  }
}

/** Merges the messages of one revision into an update. */
class Parts {
  #snapshot: RequestStatus["devices"] = [];
  #change: RequestChange["devices"] = [];

  /** Returns an update if the message is its last part. */
  add({ event, more, resumeToken: token }: WatchRequestResponse): Update | undefined {
    switch (event?.$case) {
      case "snapshot": {
        const devices = this.#snapshot;
        devices.push(...event.value.devices);
        if (more) return undefined;
        this.#snapshot = [];
        return { kind: "snapshot", content: { ...event.value, devices }, token };
      }
      case "change": {
        const devices = this.#change;
        devices.push(...event.value.devices);
        if (more) return undefined;
        this.#change = [];
        return { kind: "change", content: { ...event.value, devices }, token };
      }
      default:
        return undefined;
    }
  }
}

/** Remembers which revision was delivered last. */
class Revisions {
  #last = 0;

  /**
   * Whether an update has not been delivered yet. A snapshot with a lower revision is new: the
   * gateway's store was restored from a backup, and the request continues from there.
   */
  isNew({ kind, content: { revision } }: Update): boolean {
    if (kind === "snapshot" ? revision === this.#last : revision <= this.#last) return false;
    this.#last = revision;
    return true;
  }
}
