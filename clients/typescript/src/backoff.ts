import { setTimeout as sleep } from "node:timers/promises";

const FIRST_MS = 500;
const LONGEST_MS = 30_000;

/** The pauses between attempts: 0.5 s at first, doubled up to 30 s. */
export class Backoff {
  #nextMs = FIRST_MS;

  /** Returns the next pause. */
  next(): number {
    const pauseMs = this.#nextMs;
    this.#nextMs = Math.min(2 * pauseMs, LONGEST_MS);
    return pauseMs;
  }

  /** Starts again with the first pause. */
  reset(): void {
    this.#nextMs = FIRST_MS;
  }
}

/** Returns up to half of a pause, so that callers do not come back at the same moment. */
export function jitter(pauseMs: number): number {
  return (Math.random() * pauseMs) / 2;
}

/** Waits, and fails with the reason of the signal. */
export async function pause(waitMs: number, signal: AbortSignal): Promise<void> {
  try {
    await sleep(waitMs, undefined, { signal });
  } catch {
    signal.throwIfAborted();
  }
}
