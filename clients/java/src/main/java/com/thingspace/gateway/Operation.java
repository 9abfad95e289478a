package com.thingspace.gateway;

import io.grpc.Context;
import io.grpc.Status;
import java.time.Duration;
import java.util.Objects;
import java.util.Set;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/**
 * A running order or watch. It ends early if the {@link Context} of its caller ends, or if the
 * client is closed. Its calls run in its own context, so that they end with it.
 */
final class Operation implements AutoCloseable {
  private final Set<Operation> running;
  private final Context.CancellableContext context = Context.current().withCancellation();

  /** Begins an operation, and adds it to the running ones until it is closed. */
  Operation(Set<Operation> running) {
    this.running = running;
    running.add(this);
  }

  Context context() {
    return context;
  }

  /** Ends the operation, and its calls at once. */
  void end(String why, Throwable cause) {
    CancellationException end = new CancellationException(why);
    end.initCause(cause);
    context.cancel(end);
  }

  boolean isEnded() {
    return context.isCancelled();
  }

  /** Returns an error that says how the operation has ended. */
  GatewayException ended(Throwable last) {
    Throwable cause = context.cancellationCause();
    String why =
        cause == null || cause.getMessage() == null
            ? "the context of the caller was cancelled"
            : cause.getMessage();
    Status.Code code =
        cause instanceof TimeoutException ? Status.Code.DEADLINE_EXCEEDED : Status.Code.CANCELLED;
    Status status = code.toStatus().withDescription(why);
    GatewayException error =
        new GatewayException(Explanation.of(status, null, true), cause == null ? last : cause);
    if (cause != null && last != null) {
      error.addSuppressed(last);
    }
    return error;
  }

  /** Waits, and returns false if the operation has ended. An interrupt of the thread ends it. */
  boolean sleep(Duration wait) {
    CountDownLatch ended = new CountDownLatch(1);
    Context.CancellationListener listener = unused -> ended.countDown();
    context.addListener(listener, Runnable::run);
    try {
      return !ended.await(wait.toNanos(), TimeUnit.NANOSECONDS);
    } catch (InterruptedException e) {
      interrupted(e);
      return false;
    } finally {
      context.removeListener(listener);
    }
  }

  /** Ends the operation because its thread was interrupted, and leaves the thread so. */
  void interrupted(InterruptedException cause) {
    Thread.currentThread().interrupt();
    end("the thread was interrupted", Objects.requireNonNull(cause));
  }

  @Override
  public void close() {
    running.remove(this);
    context.cancel(null);
  }
}
