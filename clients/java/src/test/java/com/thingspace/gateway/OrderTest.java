package com.thingspace.gateway;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.thingspace.esim.v1.DeviceIdentifiers;
import io.grpc.Context;
import io.grpc.Status;
import java.time.Duration;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** How orders are repeated. */
class OrderTest {
  private static final List<DeviceIdentifiers> DEVICES =
      List.of(DeviceIdentifiers.newBuilder().setEid("e").setIccid("i").build());
  private static final String KEY = "key-4711";
  private static final OrderOptions SHORT = OrderOptions.DEFAULT.withTimeout(Duration.ofSeconds(3));

  private Peer peer;
  private GatewayClient client;

  @BeforeEach
  void start() throws Exception {
    peer = new Peer();
    client = GatewayClient.connect(peer.target(), Credentials.insecure());
  }

  @AfterEach
  void stop() throws Exception {
    client.close();
    peer.close();
  }

  private Ordered order() {
    return client.order("account", DEVICES, KEY);
  }

  @Test
  void isRepeatedWithTheSameKeyUntilTheOutcomeIsKnown() {
    peer.answerOrders(
        Peer.fail(Status.Code.RESOURCE_EXHAUSTED, "OVERLOADED", Map.of(), Peer.retryAfter(20)),
        Peer.fail(Status.Code.UNAVAILABLE, "DRAINING", Map.of()),
        Peer.fail(Status.Code.UNKNOWN),
        Peer.fail(Status.Code.FAILED_PRECONDITION, "ORDER_OUTCOME_UNKNOWN", Map.of("orderId", "1")),
        Peer.accept("request"));
    assertEquals(new Ordered("request", false), order());
    assertEquals(5, peer.orders.size());
    assertEquals(1, new HashSet<>(peer.orders).size());
  }

  @Test
  void aRefusalIsNotRepeated() {
    peer.answerOrders(
        Peer.fail(
            Status.Code.INVALID_ARGUMENT, "UPSTREAM_INVALID_INPUT", Map.of("upstreamCode", "X")));
    GatewayException error = assertThrows(GatewayException.class, this::order);
    assertEquals("X", error.explanation().metadata().get("upstreamCode"));
    assertFalse(error instanceof UnknownOutcomeException);
    assertEquals(1, peer.orders.size());
  }

  @Test
  void aRefusalAfterAnUnknownOutcomeIsDefinite() {
    peer.answerOrders(
        Peer.fail(Status.Code.INTERNAL),
        Peer.fail(Status.Code.INVALID_ARGUMENT, "UPSTREAM_INVALID_INPUT", Map.of()));
    GatewayException error = assertThrows(GatewayException.class, this::order);
    assertFalse(error instanceof UnknownOutcomeException);
  }

  @Test
  void aDefectOfTheGatewayIsAnUnknownOutcomeAtOnce() {
    peer.answerOrders(Peer.fail(Status.Code.INTERNAL, "INTERNAL", Map.of()));
    UnknownOutcomeException error = assertThrows(UnknownOutcomeException.class, this::order);
    assertEquals("account", error.account());
    assertEquals(KEY, error.idempotencyKey());
    assertEquals(Optional.empty(), error.orderId());
    assertFalse(error.explanation().safeToRepeat());
    assertInstanceOf(GatewayException.class, error.getCause());
    assertFalse(error.toString().contains(KEY));
    assertEquals(1, peer.orders.size());
  }

  @Test
  void theTimeoutEndsAnUnknownOutcome() {
    peer.answerOrders(
        Peer.fail(
            Status.Code.FAILED_PRECONDITION,
            "ORDER_OUTCOME_UNKNOWN",
            Map.of("orderId", "o-1", "requestId", "r-1")));
    UnknownOutcomeException error =
        assertThrows(
            UnknownOutcomeException.class, () -> client.order("account", DEVICES, KEY, SHORT));
    assertEquals(Optional.of("o-1"), error.orderId());
    assertEquals(Optional.of("r-1"), error.requestId());
    assertEquals("ORDER_OUTCOME_UNKNOWN", error.explanation().reason());
  }

  @Test
  void anAttemptWithoutAnAnswerIsAnUnknownOutcome() {
    peer.answerOrders(Peer.silence());
    UnknownOutcomeException error =
        assertThrows(
            UnknownOutcomeException.class, () -> client.order("account", DEVICES, KEY, SHORT));
    assertEquals(Status.Code.DEADLINE_EXCEEDED, error.explanation().code());
  }

  @Test
  void aDelayBeyondTheTimeoutIsNotWaitedFor() {
    peer.answerOrders(
        Peer.fail(
            Status.Code.RESOURCE_EXHAUSTED,
            "UPSTREAM_THROTTLED",
            Map.of(),
            Peer.retryAfter(3_600_000)));
    GatewayException error = assertThrows(GatewayException.class, this::order);
    assertEquals(Optional.of(Duration.ofHours(1)), error.explanation().retryDelay());
    assertFalse(error instanceof UnknownOutcomeException);
    assertEquals(1, peer.orders.size());
  }

  @Test
  void anInterruptEndsTheCallAndThePause() throws Exception {
    peer.answerOrders(Peer.silence());
    assertInterrupted();
    peer.answerOrders(
        Peer.fail(Status.Code.RESOURCE_EXHAUSTED, "OVERLOADED", Map.of(), Peer.retryAfter(60_000)));
    assertInterrupted();
  }

  private void assertInterrupted() throws Exception {
    int before = peer.orders.size();
    CompletableFuture<GatewayException> result = new CompletableFuture<>();
    Thread thread =
        new Thread(
            () -> {
              GatewayException error = assertThrows(GatewayException.class, this::order);
              assertTrue(Thread.currentThread().isInterrupted());
              result.complete(error);
            });
    thread.start();
    Await.until("the order", () -> peer.orders.size() > before);
    thread.interrupt();
    Explanation explanation =
        result.get(Await.PATIENCE.toSeconds(), TimeUnit.SECONDS).explanation();
    assertEquals(Status.Code.CANCELLED, explanation.code());
    assertFalse(explanation.safeToRepeat());
  }

  @Test
  void theContextOfTheCallerEndsTheCall() throws Exception {
    peer.answerOrders(Peer.silence());
    Context.CancellableContext context = Context.current().withCancellation();
    CompletableFuture<Ordered> result = CompletableFuture.supplyAsync(() -> call(context));
    Await.until("the order", () -> !peer.orders.isEmpty());
    context.cancel(null);
    assertEndsWith(result, "the context of the caller was cancelled");
  }

  private Ordered call(Context context) {
    Context previous = context.attach();
    try {
      return order();
    } finally {
      context.detach(previous);
    }
  }

  @Test
  void closingTheClientEndsTheCall() throws Exception {
    peer.answerOrders(Peer.silence());
    CompletableFuture<Ordered> result = CompletableFuture.supplyAsync(this::order);
    Await.until("the order", () -> !peer.orders.isEmpty());
    client.close();
    client.close();
    assertEndsWith(result, "the client is closed");
    GatewayException late = assertThrows(GatewayException.class, this::order);
    assertFalse(late instanceof UnknownOutcomeException, "nothing was sent");
    assertEquals("the client is closed", late.explanation().message());
  }

  private static void assertEndsWith(CompletableFuture<Ordered> result, String message) {
    ExecutionException end =
        assertThrows(
            ExecutionException.class,
            () -> result.get(Await.PATIENCE.toSeconds(), TimeUnit.SECONDS));
    UnknownOutcomeException error =
        assertInstanceOf(UnknownOutcomeException.class, end.getCause(), "the order was sent");
    assertEquals(Status.Code.CANCELLED, error.explanation().code());
    assertFalse(error.explanation().safeToRepeat());
    assertEquals(message, error.explanation().message());
  }

  @ParameterizedTest
  @CsvSource({
    // code, reason, nothingSent, after an attempt that may have placed the order, after none
    "UNAVAILABLE, '', , true, true",
    "CANCELLED, '', , true, true",
    "PERMISSION_DENIED, '', , true, false",
    "UNAVAILABLE, ORDER_IN_PROGRESS, , true, true",
    "FAILED_PRECONDITION, ORDER_OUTCOME_UNKNOWN, , true, true",
    "INTERNAL, INTERNAL, , true, true",
    "UNAVAILABLE, SLOW_READER, , true, true",
    "UNAVAILABLE, STREAM_AGE, , true, true",
    "DEADLINE_EXCEEDED, DEADLINE, , true, true",
    "DEADLINE_EXCEEDED, DEADLINE, false, true, true",
    "DEADLINE_EXCEEDED, DEADLINE, true, true, false",
    "RESOURCE_EXHAUSTED, OVERLOADED, , true, false",
    "UNAVAILABLE, DRAINING, , true, false",
    "UNAUTHENTICATED, CALLER_UNAUTHENTICATED, , true, false",
    "RESOURCE_EXHAUSTED, UPSTREAM_THROTTLED, , false, false",
    "UNAVAILABLE, UPSTREAM_UNAVAILABLE, , false, false",
    "OUT_OF_RANGE, MESSAGE_TOO_LARGE, , true, false",
    "INVALID_ARGUMENT, INVALID_FIELD, , false, false",
    "INVALID_ARGUMENT, IDEMPOTENCY_KEY_REUSED, , false, false",
  })
  void eachErrorSaysWhetherTheOrderMayBePlaced(
      Status.Code code, String reason, String nothingSent, boolean after, boolean afterNone) {
    Map<String, String> metadata =
        nothingSent == null ? Map.of() : Map.of("nothingSent", nothingSent);
    Explanation explanation =
        reason.isEmpty()
            ? GatewayClient.explain(code.toStatus().asRuntimeException())
            : GatewayClient.explain(Peer.error(code, reason, metadata));
    assertEquals(after, OrderCall.mayBePlacedAfter(true, explanation));
    assertEquals(afterNone, OrderCall.mayBePlacedAfter(false, explanation));
  }
}
