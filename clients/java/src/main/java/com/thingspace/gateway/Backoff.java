package com.thingspace.gateway;

import java.time.Duration;
import java.util.concurrent.ThreadLocalRandom;

/** The pauses between repetitions. Each is twice as long as the one before. */
final class Backoff {
  private static final Duration FIRST = Duration.ofMillis(500);
  private static final Duration LONGEST = Duration.ofSeconds(30);

  private Duration last = Duration.ZERO;

  /** Returns the next pause, without jitter. */
  Duration next() {
    last = Durations.max(FIRST, Durations.min(last.multipliedBy(2), LONGEST));
    return last;
  }

  /** Returns up to half of the last pause, to add to it. */
  Duration jitter() {
    return Duration.ofNanos(ThreadLocalRandom.current().nextLong(last.toNanos() / 2));
  }

  void reset() {
    last = Duration.ZERO;
  }
}
