package com.thingspace.gateway;

import java.time.Duration;
import java.util.concurrent.Callable;

/** Waits for what does happen. The machine may be slow. */
final class Await {
  static final Duration PATIENCE = Duration.ofSeconds(60);

  private Await() {}

  static void until(String what, Callable<Boolean> condition) throws Exception {
    long deadline = System.nanoTime() + PATIENCE.toNanos();
    while (!condition.call()) {
      if (System.nanoTime() > deadline) {
        throw new AssertionError("still waiting: " + what);
      }
      Thread.sleep(10);
    }
  }
}
