package com.thingspace.gateway;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.rpc.BadRequest;
import com.google.rpc.RequestInfo;
import com.thingspace.esim.v1.ErrorReason;
import com.thingspace.esim.v1.GetRequestStatusRequest;
import io.grpc.Context;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.ExecutionException;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** What errors mean. */
class ExplanationTest {
  @Test
  void hasAllDetails() {
    Exception error =
        Peer.error(
            Status.Code.INVALID_ARGUMENT,
            "INVALID_FIELD",
            Map.of("a", "b"),
            BadRequest.newBuilder()
                .addFieldViolations(
                    BadRequest.FieldViolation.newBuilder().setField("f").setDescription("d"))
                .build(),
            Peer.retryAfter(1500),
            RequestInfo.newBuilder().setRequestId("log-1").build());
    Explanation explanation = GatewayClient.explain(new ExecutionException(error));
    assertEquals(
        new Explanation(
            Status.Code.INVALID_ARGUMENT,
            "INVALID_FIELD",
            "because of INVALID_FIELD",
            List.of(new Violation("f", "d")),
            Optional.of(Duration.ofMillis(1500)),
            false,
            Map.of("a", "b"),
            "log-1"),
        explanation);
    assertTrue(explanation.hasReason(ErrorReason.ERROR_REASON_INVALID_FIELD));
    assertFalse(explanation.hasReason(ErrorReason.ERROR_REASON_OVERLOADED));
  }

  @ParameterizedTest
  @CsvSource({
    "UNAVAILABLE, '', true",
    "UNAVAILABLE, DRAINING, true",
    "DEADLINE_EXCEEDED, '', true",
    "DEADLINE_EXCEEDED, DEADLINE, true",
    "RESOURCE_EXHAUSTED, OVERLOADED, true",
    "RESOURCE_EXHAUSTED, UPSTREAM_THROTTLED, true",
    "RESOURCE_EXHAUSTED, STORE_FULL, true",
    "RESOURCE_EXHAUSTED, '', false",
    "FAILED_PRECONDITION, ORDER_OUTCOME_UNKNOWN, true",
    "FAILED_PRECONDITION, UPSTREAM_REFUSED, false",
    "CANCELLED, '', true",
    "UNKNOWN, '', true",
    "INTERNAL, '', true",
    "INTERNAL, INTERNAL, false",
    "UNAUTHENTICATED, '', false",
    "NOT_FOUND, REQUEST_NOT_FOUND, false",
  })
  void saysWhetherRepeatingIsSafe(Status.Code code, String reason, boolean safe) {
    Exception error =
        reason.isEmpty() ? code.toStatus().asException() : Peer.error(code, reason, Map.of());
    assertEquals(safe, GatewayClient.explain(error).safeToRepeat());
  }

  @Test
  void anErrorWithoutAStatusIsNotSafeToRepeat() {
    Explanation explanation = GatewayClient.explain(new IllegalStateException("no"));
    assertEquals(Status.Code.UNKNOWN, explanation.code());
    assertFalse(explanation.safeToRepeat());
  }

  @Test
  void theCallersOwnCancellationIsNotSafeToRepeat() throws Exception {
    try (Peer peer = new Peer();
        GatewayClient client = GatewayClient.connect(peer.target(), Credentials.insecure());
        Context.CancellableContext context = Context.current().withCancellation()) {
      context.cancel(null);
      StatusRuntimeException cancelled =
          assertThrows(StatusRuntimeException.class, () -> context.call(() -> call(client)));
      assertFalse(GatewayClient.explain(cancelled).safeToRepeat(), cancelled.toString());
      Thread.currentThread().interrupt();
      StatusRuntimeException interrupted =
          assertThrows(StatusRuntimeException.class, () -> call(client));
      assertTrue(Thread.interrupted());
      assertFalse(GatewayClient.explain(interrupted).safeToRepeat(), interrupted.toString());
    }
  }

  private static Object call(GatewayClient client) {
    return client.stub().getRequestStatus(GetRequestStatusRequest.getDefaultInstance());
  }
}
