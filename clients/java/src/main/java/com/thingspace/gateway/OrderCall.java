package com.thingspace.gateway;

import com.thingspace.esim.v1.DownloadProfileRequest;
import com.thingspace.esim.v1.DownloadProfileResponse;
import com.thingspace.esim.v1.EsimServiceGrpc.EsimServiceBlockingStub;
import io.grpc.Context;
import io.grpc.Deadline;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.lang.System.Logger;
import java.lang.System.Logger.Level;
import java.time.Duration;
import java.util.Optional;
import java.util.concurrent.TimeUnit;

/** Repeats the call of one order until its outcome is known, or its time is over. */
final class OrderCall {
  private static final Duration ATTEMPT_TIMEOUT = Duration.ofSeconds(90);

  /** A pause ends at least this long before the deadline, so that another attempt has time. */
  private static final Duration LAST_ATTEMPT = Duration.ofSeconds(1);

  private final EsimServiceBlockingStub stub;
  private final Logger logger;
  private final DownloadProfileRequest request;
  private final Operation operation;
  private final Deadline deadline;
  private final Backoff backoff = new Backoff();

  private boolean mayBePlaced;
  private String orderId = "";
  private String requestId = "";

  OrderCall(
      EsimServiceBlockingStub stub,
      Logger logger,
      DownloadProfileRequest request,
      Operation operation,
      Duration timeout) {
    this.stub = stub;
    this.logger = logger;
    this.request = request;
    this.operation = operation;
    Deadline own = Deadline.after(timeout.toMillis(), TimeUnit.MILLISECONDS);
    Deadline outer = operation.context().getDeadline();
    this.deadline = outer == null ? own : own.minimum(outer);
  }

  Ordered run() {
    if (Thread.currentThread().isInterrupted()) {
      operation.interrupted(new InterruptedException());
    }
    if (operation.isEnded()) {
      throw operation.ended(null);
    }
    while (true) {
      GatewayException failure;
      try {
        DownloadProfileResponse response = attempt();
        return new Ordered(response.getRequestId(), response.getReplayed());
      } catch (StatusRuntimeException e) {
        failure = explain(e);
      }
      remember(failure.explanation());
      Optional<Duration> pause = pauseAfter(failure.explanation());
      if (pause.isPresent()) {
        if (operation.sleep(pause.get())) {
          continue;
        }
        failure = operation.ended(failure);
      }
      throw mayBePlaced ? unknownOutcome(failure) : failure;
    }
  }

  private DownloadProfileResponse attempt() {
    Deadline attempt = Deadline.after(ATTEMPT_TIMEOUT.toMillis(), TimeUnit.MILLISECONDS);
    Context previous = operation.context().attach();
    try {
      return stub.withDeadline(attempt.minimum(deadline)).downloadProfile(request);
    } finally {
      operation.context().detach(previous);
    }
  }

  private GatewayException explain(StatusRuntimeException error) {
    if (error.getCause() instanceof InterruptedException interrupt) {
      operation.interrupted(interrupt);
    }
    return operation.isEnded()
        ? operation.ended(error)
        : new GatewayException(
            Explanation.of(error.getStatus(), error.getTrailers(), false), error);
  }

  /** Keeps what an attempt says about the order. */
  private void remember(Explanation explanation) {
    mayBePlaced = mayBePlacedAfter(mayBePlaced, explanation);
    if (explanation.metadata().containsKey("orderId")) {
      orderId = explanation.metadata().get("orderId");
      requestId = explanation.metadata().getOrDefault("requestId", "");
    }
  }

  /**
   * Returns whether the order may be placed after an attempt has failed.
   *
   * @param before whether it may have been placed before
   */
  static boolean mayBePlacedAfter(boolean before, Explanation explanation) {
    return switch (explanation.reason()) {
      // The attempt had no answer, unless a proxy has refused it.
      case "" ->
          before || explanation.safeToRepeat() || explanation.code() == Status.Code.CANCELLED;
      case "ORDER_IN_PROGRESS", "ORDER_OUTCOME_UNKNOWN", "INTERNAL", "SLOW_READER", "STREAM_AGE" ->
          true;
      case "DEADLINE" -> before || !"true".equals(explanation.metadata().get("nothingSent"));
      // The gateway would have refused each earlier attempt, too.
      case "INVALID_FIELD", "IDEMPOTENCY_KEY_REUSED" -> false;
      // Before the gateway sends an order to ThingSpace, it looks up the order's key. So
      // ThingSpace's
      // errors say that no order was placed with the key. The others say only that this attempt has
      // placed nothing.
      default -> before && !explanation.reason().startsWith("UPSTREAM_");
    };
  }

  /**
   * Returns how long to wait before the next attempt, or nothing if there is none. A pause that the
   * gateway has not asked for is shortened, so that there is a last attempt.
   */
  private Optional<Duration> pauseAfter(Explanation explanation) {
    Duration left =
        Duration.ofMillis(deadline.timeRemaining(TimeUnit.MILLISECONDS)).minus(LAST_ATTEMPT);
    Duration next = backoff.next();
    Duration pause = explanation.retryDelay().orElse(next).plus(backoff.jitter());
    if (explanation.retryDelay().isEmpty()) {
      pause = Durations.min(pause, left);
    }
    if (!explanation.safeToRepeat() || left.isNegative() || pause.compareTo(left) > 0) {
      return Optional.empty();
    }
    logger.log(
        Level.INFO,
        "repeating an order: account={0} code={1} reason={2} wait={3}",
        request.getAccountName(),
        explanation.code(),
        explanation.reason(),
        pause);
    return Optional.of(pause);
  }

  private UnknownOutcomeException unknownOutcome(GatewayException last) {
    return new UnknownOutcomeException(
        request.getAccountName(), request.getIdempotencyKey(), orderId, requestId, last);
  }
}
