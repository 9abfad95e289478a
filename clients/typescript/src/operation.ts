/** Ends one call of the client: by the caller's signal, by the client's end, or by itself. */
export class Operation {
  readonly #controller = new AbortController();
  readonly #operations: Set<Operation>;
  readonly #callersSignal: AbortSignal | undefined;
  readonly #onAbort = (): void => {
    this.abort(this.#callersSignal?.reason);
  };

  /** Begins an operation, which is in `operations` until it ends. */
  constructor(operations: Set<Operation>, callersSignal: AbortSignal | undefined) {
    this.#operations = operations;
    this.#callersSignal = callersSignal;
    operations.add(this);
    if (callersSignal?.aborted) this.#onAbort();
    else callersSignal?.addEventListener("abort", this.#onAbort);
  }

  /** Aborted when the operation has to stop. Its reason is what the caller receives. */
  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Stops the operation. */
  abort(reason: unknown): void {
    this.#controller.abort(reason);
  }

  /** Forgets the operation. */
  end(): void {
    this.#operations.delete(this);
    this.#callersSignal?.removeEventListener("abort", this.#onAbort);
  }
}
