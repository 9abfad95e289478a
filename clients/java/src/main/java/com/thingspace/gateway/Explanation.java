package com.thingspace.gateway;

import com.google.protobuf.Any;
import com.google.protobuf.Duration;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RequestInfo;
import com.google.rpc.RetryInfo;
import com.thingspace.esim.v1.ErrorReason;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusException;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.Set;

/**
 * Says what an error means and what to do about it. {@link GatewayClient#explain} makes it.
 *
 * @param code the gRPC code
 * @param reason one of {@link ErrorReason} without its prefix, or a reason of a later gateway;
 *     empty if the error comes from a proxy, the network or the library, not from the gateway
 * @param message a text for people; decide by reason and code
 * @param violations the wrong fields of a request
 * @param retryDelay how long to wait at least before the call is repeated, if the gateway says so
 * @param safeToRepeat whether the same call with the same key can be repeated, and may succeed
 *     without a change by anybody who calls
 * @param metadata the metadata of the gateway's {@code google.rpc.ErrorInfo}, such as {@code
 *     orderId}
 * @param logId an id with which the gateway's operator finds the cause in its log, or empty
 */
public record Explanation(
    Status.Code code,
    String reason,
    String message,
    List<Violation> violations,
    Optional<java.time.Duration> retryDelay,
    boolean safeToRepeat,
    Map<String, String> metadata,
    String logId) {
  private static final String DOMAIN = "thingspace-gateway";
  private static final String REASON_PREFIX = "ERROR_REASON_";
  private static final Set<Status.Code> FROM_THE_NETWORK =
      Set.of(Status.Code.CANCELLED, Status.Code.UNKNOWN, Status.Code.INTERNAL);

  /**
   * Returns whether the error has a reason.
   *
   * @param expected the reason
   * @return whether it is the reason of the error
   */
  public boolean hasReason(ErrorReason expected) {
    return reason.equals(expected.name().substring(REASON_PREFIX.length()));
  }

  /**
   * Explains the end of a call.
   *
   * @param trailers may be null
   * @param own whether the caller itself has ended the call
   */
  static Explanation of(Status status, Metadata trailers, boolean own) {
    String reason = "";
    Map<String, String> metadata = Map.of();
    List<Violation> violations = new ArrayList<>();
    Optional<java.time.Duration> retryDelay = Optional.empty();
    String logId = "";
    for (Any detail : StatusProto.fromStatusAndTrailers(status, trailers).getDetailsList()) {
      try {
        if (detail.is(ErrorInfo.class)) {
          ErrorInfo info = detail.unpack(ErrorInfo.class);
          if (info.getDomain().equals(DOMAIN)) {
            reason = info.getReason();
            metadata = info.getMetadataMap();
          }
        } else if (detail.is(BadRequest.class)) {
          for (var violation : detail.unpack(BadRequest.class).getFieldViolationsList()) {
            violations.add(new Violation(violation.getField(), violation.getDescription()));
          }
        } else if (detail.is(RetryInfo.class)) {
          Duration delay = detail.unpack(RetryInfo.class).getRetryDelay();
          java.time.Duration wait =
              java.time.Duration.ofSeconds(delay.getSeconds(), delay.getNanos());
          retryDelay = Optional.of(Durations.max(wait, java.time.Duration.ZERO));
        } else if (detail.is(RequestInfo.class)) {
          logId = detail.unpack(RequestInfo.class).getRequestId();
        }
      } catch (InvalidProtocolBufferException e) {
        // A detail that cannot be read is like one that is not there.
        continue;
      }
    }
    return new Explanation(
        status.getCode(),
        reason,
        Objects.requireNonNullElse(status.getDescription(), ""),
        List.copyOf(violations),
        retryDelay,
        isSafeToRepeat(status.getCode(), reason, own),
        metadata,
        logId);
  }

  /** Explains any error, as {@link GatewayClient#explain} says. */
  static Explanation of(Throwable error) {
    for (Throwable cause = error; cause != null; cause = cause.getCause()) {
      if (cause instanceof GatewayException known) {
        return known.explanation();
      }
      if (cause instanceof StatusRuntimeException call) {
        return of(call.getStatus(), call.getTrailers(), isOwnEnd(call.getStatus()));
      }
      if (cause instanceof StatusException call) {
        return of(call.getStatus(), call.getTrailers(), isOwnEnd(call.getStatus()));
      }
    }
    return of(Status.UNKNOWN.withDescription(String.valueOf(error)), null, true);
  }

  /**
   * Returns whether gRPC reports the caller's own cancellation. Only that has a cause on this
   * machine, or one of these texts.
   */
  private static boolean isOwnEnd(Status status) {
    String description = Objects.requireNonNullElse(status.getDescription(), "");
    return status.getCode() == Status.Code.CANCELLED
        && (status.getCause() != null
            || description.startsWith("io.grpc.Context was cancelled")
            || description.startsWith("GrpcFuture was cancelled"));
  }

  private static boolean isSafeToRepeat(Status.Code code, String reason, boolean own) {
    return switch (code) {
      case UNAVAILABLE, DEADLINE_EXCEEDED -> true;
      case RESOURCE_EXHAUSTED ->
          Set.of("OVERLOADED", "UPSTREAM_THROTTLED", "STORE_FULL").contains(reason);
      case FAILED_PRECONDITION -> reason.equals("ORDER_OUTCOME_UNKNOWN");
      default -> FROM_THE_NETWORK.contains(code) && reason.isEmpty() && !own;
    };
  }
}
