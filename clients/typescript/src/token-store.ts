import { createHash, randomUUID } from "node:crypto";
import { mkdir, open, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";

/**
 * Keeps the token of each watch, so that another process can continue it. `watch` saves the token of
 * an update when the next one is asked for.
 */
export interface TokenStore {
  /** Returns the token of a request, or `undefined` without one. */
  load(account: string, requestId: string): Promise<string | undefined>;
  /** Replaces the token of a request. */
  save(account: string, requestId: string, token: string): Promise<void>;
  /** Deletes the token of a request, if there is one. */
  delete(account: string, requestId: string): Promise<void>;
}

/**
 * Keeps each token in a file of its own. A file is replaced as a whole and is durable when `save`
 * returns. Only one process should watch a request with the same directory at a time.
 */
export class FileTokenStore implements TokenStore {
  readonly #directory: string;

  /** Keeps the tokens in this directory, which is created if it does not exist. */
  constructor(directory: string) {
    this.#directory = directory;
  }

  async load(account: string, requestId: string): Promise<string | undefined> {
    try {
      return await readFile(this.#file(account, requestId), "utf8");
    } catch (error) {
      if (isNotFound(error)) return undefined;
      throw error;
    }
  }

  async save(account: string, requestId: string, token: string): Promise<void> {
    await mkdir(this.#directory, { recursive: true, mode: 0o700 });
    const temporary = join(this.#directory, `${randomUUID()}.tmp`);
    try {
      const file = await open(temporary, "wx", 0o600);
      try {
        await file.writeFile(token);
        await file.sync();
      } finally {
        await file.close();
      }
      await rename(temporary, this.#file(account, requestId));
    } catch (error) {
      await rm(temporary, { force: true });
      throw error;
    }
    await this.#syncDirectory();
  }

  async delete(account: string, requestId: string): Promise<void> {
    await rm(this.#file(account, requestId), { force: true });
  }

  /** The name is a hash, so that no id can lead out of the directory. */
  #file(account: string, requestId: string): string {
    const hash = createHash("sha256").update(JSON.stringify([account, requestId]));
    return join(this.#directory, `${hash.digest("hex")}.token`);
  }

  async #syncDirectory(): Promise<void> {
    // Windows cannot open directories, and writes their entries by itself.
    if (process.platform === "win32") return;
    const directory = await open(this.#directory);
    try {
      await directory.sync();
    } finally {
      await directory.close();
    }
  }
}

function isNotFound(error: unknown): boolean {
  return error instanceof Error && "code" in error && error.code === "ENOENT";
}
