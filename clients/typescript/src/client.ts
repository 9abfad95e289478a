import { Connection, WatchConnections } from "./connections.js";
import type { Credentials } from "./credentials.js";
import { CLOSED } from "./errors.js";
import type { EsimServiceClient } from "./generated/thingspace/esim/v1/esim.js";
import type { Logger } from "./logger.js";
import { Operation } from "./operation.js";
import { type Order, type Placed, placeOrder } from "./order.js";
import { grpcTarget, isLoopback } from "./target.js";
import { type Update, updates, type Watch, type WatchOptions } from "./watch.js";

/** Options of {@link connect}. */
export interface ConnectOptions {
  /** Receives a line for each call that is repeated or resumed. */
  readonly logger?: Logger | undefined;
}

/**
 * Makes a client. It connects with the first call, and reconnects by itself.
 *
 * @param target `host:port`, or an address with a scheme of gRPC, such as `dns:///gateway:50051`.
 * @param credentials {@link insecure} or {@link tls}.
 */
export function connect(
  target: string,
  credentials: Credentials,
  options: ConnectOptions = {},
): Client {
  return new Client(target, credentials, options);
}

/** The reason with which `return` of an iterator stops its watch. */
const STOPPED = Symbol("stopped");

/** A client of the gateway. One is enough for a process. */
export class Client {
  readonly #unary: Connection;
  readonly #watches: WatchConnections;
  readonly #operations = new Set<Operation>();
  readonly #log: Logger;
  #closed = false;

  /** @internal */
  constructor(target: string, credentials: Credentials, options: ConnectOptions) {
    const address = grpcTarget(target);
    // Fails now if the file cannot be read.
    const token = credentials.token();
    if (token !== undefined && credentials.tokenOnLoopbackOnly && !isLoopback(address)) {
      throw new Error(
        `a token would cross the network in plaintext to ${target}: use tls(), ` +
          "or accept the risk with allowTokenOverPlaintext",
      );
    }
    this.#log = options.logger ?? (() => undefined);
    this.#unary = new Connection(address, credentials);
    this.#watches = new WatchConnections(() => new Connection(address, credentials));
  }

  /**
   * The generated stub, for plain calls such as `getRequestStatus`. Its calls have the token, wait
   * for a connection, and end after 90 s unless they have a deadline. Its errors go to `explain`.
   */
  get stub(): EsimServiceClient {
    return this.#unary.stub;
  }

  /**
   * Orders profiles, and repeats the call with the same key until the outcome is known.
   *
   * The key is required, and is never made here: a key that is lost with the process could not be
   * used again, and a new key is a new order.
   *
   * @throws UnknownOutcomeError if the order may or may not be placed, at the end of the timeout or
   * after an error that makes it useless to go on: call again with the same key.
   * @throws GatewayError if the order is refused, or if the timeout ends and no attempt has placed
   * it.
   */
  async order(order: Order): Promise<Placed> {
    this.#checkOpen();
    const operation = new Operation(this.#operations, order.signal);
    try {
      return await placeOrder(this.#unary.stub, order, operation.signal, this.#log);
    } finally {
      operation.end();
    }
  }

  /**
   * Watches a request: yields a snapshot (or continues after `token`), then every change once and in
   * order, and ends after the final state. Breaks are resumed.
   *
   * With `tokenStore`, the token of an update is saved when the next update is asked for. An update
   * whose processing failed comes again after a restart, so process each update at least once. The
   * token is deleted after the final update: let the iterator end, and do not leave the loop there.
   *
   * @throws GatewayError if the watch cannot be resumed, for example with `REQUEST_NOT_FOUND`,
   * `CALLER_NOT_ALLOWED` or `STILL_PENDING`.
   */
  watch(options: WatchOptions): Watch {
    const stop = new AbortController();
    const generator = this.#updates(options, stop.signal);
    return {
      next: () => generator.next(),
      // A generator alone would wait for a pending next().
      return: () => {
        stop.abort(STOPPED);
        return generator.return();
      },
      [Symbol.asyncIterator]() {
        return this;
      },
    };
  }

  async *#updates(
    options: WatchOptions,
    stop: AbortSignal,
  ): AsyncGenerator<Update, void, undefined> {
    this.#checkOpen();
    const operation = new Operation(this.#operations, options.signal);
    const { signal } = operation;
    stop.addEventListener("abort", () => {
      operation.abort(STOPPED);
    });
    const connection = this.#watches.acquire();
    try {
      yield* updates(options, { stub: connection.stub, signal, log: this.#log });
    } catch (error) {
      if (error !== STOPPED) throw error;
    } finally {
      operation.end();
      this.#watches.release(connection);
    }
  }

  /** Ends all calls and watches with an error, and closes the connections. */
  close(): void {
    this.#closed = true;
    for (const operation of this.#operations) operation.abort(closedError());
    this.#watches.close();
    this.#unary.close();
  }

  #checkOpen(): void {
    if (this.#closed) throw closedError();
  }
}

function closedError(): Error {
  return new Error(CLOSED);
}
