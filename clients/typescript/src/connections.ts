import { InterceptingCall, type Interceptor, status } from "@grpc/grpc-js";

import type { Credentials } from "./credentials.js";
import { CLOSED } from "./errors.js";
import { EsimServiceClient } from "./generated/thingspace/esim/v1/esim.js";
import { SERVICE_CONFIG } from "./service-config.js";

/** The most watches on one connection. Some proxies allow 128 streams. */
const WATCHES_PER_CONNECTION = 100;

const CHANNEL_OPTIONS = {
  "grpc.service_config": SERVICE_CONFIG,
  // Otherwise a TXT record of the name could replace the service config.
  "grpc.service_config_disable_resolution": 1,
  "grpc.keepalive_time_ms": 60_000,
  "grpc.keepalive_timeout_ms": 20_000,
  "grpc.keepalive_permit_without_calls": 0,
  "grpc.max_reconnect_backoff_ms": 2_000,
  // Otherwise channels with the same target share a connection.
  "grpc.use_local_subchannel_pool": 1,
};

/** A channel with a connection of its own. Each call has the caller's token, and waits for a connection. */
export class Connection {
  /** The generated stub. */
  readonly stub: EsimServiceClient;
  readonly #calls = new Set<InterceptingCall>();

  constructor(target: string, credentials: Credentials) {
    const token = credentials.call;
    const interceptor: Interceptor = (options, nextCall) => {
      const all = { ...options, credentials: options.credentials?.compose(token) ?? token };
      const call: InterceptingCall = new InterceptingCall(nextCall(all), {
        start: (metadata, _listener, next) => {
          this.#calls.add(call);
          const sent = metadata.clone();
          // grpc-js does not read waitForReady in the service config.
          sent.setOptions({ ...sent.getOptions(), waitForReady: true });
          next(sent, {
            onReceiveStatus: (received, nextStatus) => {
              this.#calls.delete(call);
              nextStatus(received);
            },
          });
        },
      });
      return call;
    };
    this.stub = new EsimServiceClient(target, credentials.channel, {
      ...CHANNEL_OPTIONS,
      interceptors: [interceptor],
    });
  }

  /** Ends all calls, then the connection. */
  close(): void {
    for (const call of this.#calls) call.cancelWithStatus(status.CANCELLED, CLOSED);
    this.stub.close();
  }
}

/** The connections of watches, each with at most 100 watches. One stays open when all watches have ended. */
export class WatchConnections {
  readonly #open: () => Connection;
  readonly #watches = new Map<Connection, number>();

  constructor(open: () => Connection) {
    this.#open = open;
  }

  /** Returns a connection for one more watch. */
  acquire(): Connection {
    for (const [connection, watches] of this.#watches) {
      if (watches < WATCHES_PER_CONNECTION) {
        this.#watches.set(connection, watches + 1);
        return connection;
      }
    }
    const connection = this.#open();
    this.#watches.set(connection, 1);
    return connection;
  }

  /** Gives a connection back when a watch on it has ended. */
  release(connection: Connection): void {
    const watches = (this.#watches.get(connection) ?? 0) - 1;
    if (watches === 0 && this.#watches.size > 1) {
      this.#watches.delete(connection);
      connection.close();
    } else if (watches >= 0) {
      this.#watches.set(connection, watches);
    }
  }

  /** Ends all watches and connections. */
  close(): void {
    for (const connection of this.#watches.keys()) connection.close();
    this.#watches.clear();
  }
}
