import { readFileSync } from "node:fs";
import { rootCertificates } from "node:tls";

import {
  type CallCredentials,
  type ChannelCredentials,
  credentials,
  experimental,
  Metadata,
} from "@grpc/grpc-js";

/** How often the files of certificates are read again. */
const REFRESH_MS = 5_000;

/** Where the caller's token is. */
export interface TokenOptions {
  /**
   * A file with a token that proves who you are: a token from the gateway's operator, or a JSON Web
   * Token. It is read for each attempt of a call, so that a rotated file is used.
   */
  readonly tokenFile?: string | undefined;
}

/** Options of {@link insecure}. */
export interface InsecureOptions extends TokenOptions {
  /**
   * Sends the token over plaintext to other machines, too. Everybody on the network can then read
   * it. Only for a network that encrypts by itself, such as a service mesh.
   */
  readonly allowTokenOverPlaintext?: boolean | undefined;
}

/** Options of {@link tls}. */
export interface TlsOptions extends TokenOptions {
  /** The certificates (PEM) of the authorities that may sign the gateway's. Default: Node's own. */
  readonly caFile?: string | undefined;
  /** The client certificate (PEM) with its chain. */
  readonly certFile?: string | undefined;
  /** The key (PEM) of the client certificate. */
  readonly keyFile?: string | undefined;
}

/** How to connect, and how to prove who you are. Made by {@link insecure} or {@link tls}. */
export class Credentials {
  readonly #tokenFile: string | undefined;
  /** @internal */
  readonly channel: ChannelCredentials;
  /** @internal Whether the token may only be sent to this machine. */
  readonly tokenOnLoopbackOnly: boolean;

  /** @internal */
  constructor(channel: ChannelCredentials, tokenOnLoopbackOnly: boolean, tokenFile?: string) {
    this.channel = channel;
    this.tokenOnLoopbackOnly = tokenOnLoopbackOnly;
    this.#tokenFile = tokenFile;
  }

  /** @internal Adds the token to each attempt of a call, also to one that began with an old token. */
  get call(): CallCredentials {
    return credentials.createFromMetadataGenerator((_options, done) => {
      const metadata = new Metadata();
      try {
        const token = this.token();
        if (token !== undefined) metadata.set("authorization", `Bearer ${token}`);
      } catch (error) {
        // The call ends with UNKNOWN, and may be repeated: the file may be there again then.
        done(error as Error);
        return;
      }
      done(null, metadata);
    });
  }

  /** @internal Reads the token. The errors name the file and never its content. */
  token(): string | undefined {
    return this.#tokenFile === undefined ? undefined : readToken(this.#tokenFile);
  }
}

/**
 * Plaintext: for a gateway on the same machine, or behind a service mesh that encrypts. A token is
 * sent to this machine only, unless `allowTokenOverPlaintext` is set.
 */
export function insecure(options: InsecureOptions = {}): Credentials {
  const onLoopbackOnly = options.allowTokenOverPlaintext !== true;
  return new Credentials(credentials.createInsecure(), onLoopbackOnly, options.tokenFile);
}

/**
 * TLS, with a client certificate if `certFile` and `keyFile` are set. The files are read again every
 * 5 s while a client is open, and new connections use what they contain then.
 */
export function tls(options: TlsOptions = {}): Credentials {
  const { caFile, certFile, keyFile, tokenFile } = options;
  if ((certFile === undefined) !== (keyFile === undefined)) {
    throw new TypeError("certFile and keyFile must be set together");
  }
  return new Credentials(tlsChannel(caFile, certFile, keyFile), false, tokenFile);
}

function tlsChannel(caFile?: string, certFile?: string, keyFile?: string): ChannelCredentials {
  // Fails now with a clear error if a file is missing or wrong.
  const [ca, cert, key] = [caFile, certFile, keyFile].map((file) =>
    file ? readFileSync(file) : null,
  );
  const channel = credentials.createSsl(ca, key, cert);
  if (!caFile && !certFile) return channel;
  const authorities = caFile
    ? new experimental.FileWatcherCertificateProvider({
        caCertificateFile: caFile,
        refreshIntervalMs: REFRESH_MS,
      })
    : NODE_AUTHORITIES;
  const identity =
    certFile && keyFile
      ? new experimental.FileWatcherCertificateProvider({
          certificateFile: certFile,
          privateKeyFile: keyFile,
          refreshIntervalMs: REFRESH_MS,
        })
      : null;
  return experimental.createCertificateProviderChannelCredentials(authorities, identity);
}

/** Node's own authorities, which do not change. */
const NODE_AUTHORITIES: experimental.CertificateProvider = {
  addCaCertificateListener(listener) {
    listener({ caCertificate: Buffer.from(rootCertificates.join("\n")) });
  },
  removeCaCertificateListener() {
    // Nothing was kept.
  },
  addIdentityCertificateListener() {
    throw new Error("there is no client certificate");
  },
  removeIdentityCertificateListener() {
    // Nothing was kept.
  },
};

function readToken(file: string): string {
  let token: string;
  try {
    token = readFileSync(file, "utf8").trim();
  } catch (error) {
    throw new Error(`cannot read the token: ${(error as Error).message}`, { cause: error });
  }
  if (token === "") throw new Error(`the file of the token is empty: ${file}`);
  if (!/^[\x21-\x7e]+$/.test(token)) {
    throw new Error(`the file of the token has more than one printable ASCII word: ${file}`);
  }
  return token;
}
