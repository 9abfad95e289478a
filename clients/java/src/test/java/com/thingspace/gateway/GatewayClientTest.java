package com.thingspace.gateway;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.thingspace.esim.v1.DeviceIdentifiers;
import com.thingspace.esim.v1.ErrorReason;
import com.thingspace.esim.v1.GetRequestStatusRequest;
import com.thingspace.esim.v1.RequestState;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Flow;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The client with a real gateway. */
class GatewayClientTest {
  private static Dev dev;
  private static GatewayClient client;

  @BeforeAll
  static void start() throws Exception {
    dev = new Dev();
    client = GatewayClient.connect(dev.target, Credentials.insecure());
  }

  @AfterAll
  static void stop() throws Exception {
    client.close();
    dev.close();
  }

  /** A device whose download succeeds, or fails if the last digit of its ICCID is 8. */
  private static DeviceIdentifiers device(String iccid) {
    return DeviceIdentifiers.newBuilder()
        .setEid("890490320070088826" + iccid.substring(6))
        .setIccid(iccid)
        .build();
  }

  @Test
  void anOrderIsPlacedAndWatchedUntilItIsFinal() {
    List<DeviceIdentifiers> devices =
        List.of(device("89148000004292930100"), device("89148000004292930108"));
    Ordered ordered = client.order(Dev.ACCOUNT, devices, "plain");
    assertFalse(ordered.replayed());
    List<Update> updates = new ArrayList<>();
    try (Watch watch = client.watch(Dev.ACCOUNT, ordered.requestId())) {
      watch.forEach(updates::add);
    }
    assertInstanceOf(Update.Snapshot.class, updates.get(0));
    assertEquals(2, updates.get(0).devices().size());
    Update last = updates.get(updates.size() - 1);
    assertEquals(RequestState.REQUEST_STATE_PARTIALLY_SUCCEEDED, last.state());
    assertEquals(1, last.counts().getSucceeded());
    assertEquals(1, last.counts().getFailed());
  }

  @Test
  void theSameKeyReturnsTheSameRequest() {
    List<DeviceIdentifiers> devices = List.of(device("89148000004292930200"));
    OrderOptions options = OrderOptions.DEFAULT.withServicePlan("a plan");
    Ordered first = client.order(Dev.ACCOUNT, devices, "replay", options);
    Ordered again = client.order(Dev.ACCOUNT, devices, "replay", options);
    assertEquals(new Ordered(first.requestId(), true), again);
    GatewayException error =
        assertThrows(GatewayException.class, () -> client.order(Dev.ACCOUNT, devices, "replay"));
    assertTrue(error.explanation().hasReason(ErrorReason.ERROR_REASON_IDEMPOTENCY_KEY_REUSED));
  }

  @Test
  void anErrorNamesEachWrongField() {
    List<DeviceIdentifiers> devices = List.of(DeviceIdentifiers.newBuilder().setEid("1").build());
    GatewayException error =
        assertThrows(GatewayException.class, () -> client.order(Dev.ACCOUNT, devices, "wrong"));
    Explanation explanation = error.explanation();
    assertEquals(Status.Code.INVALID_ARGUMENT, explanation.code());
    assertTrue(explanation.hasReason(ErrorReason.ERROR_REASON_INVALID_FIELD));
    assertFalse(explanation.safeToRepeat());
    assertEquals(
        List.of("devices[0].eid", "devices[0].iccid"),
        explanation.violations().stream().map(Violation::field).toList());
    assertEquals(explanation, GatewayClient.explain(error));
    assertInstanceOf(StatusRuntimeException.class, error.getCause());
  }

  @Test
  void aWatchOfAnUnknownRequestFails() {
    try (Watch watch = client.watch(Dev.ACCOUNT, "11111111-1111-1111-1111-111111111111")) {
      var updates = watch.iterator();
      GatewayException error = assertThrows(GatewayException.class, updates::hasNext);
      assertEquals("REQUEST_NOT_FOUND", error.explanation().reason());
      assertThrows(GatewayException.class, updates::hasNext);
    }
  }

  @Test
  void theStubHasThePlainCalls() {
    Ordered ordered = client.order(Dev.ACCOUNT, List.of(device("89148000004292930300")), "stub");
    var status =
        client
            .stub()
            .withDeadlineAfter(60, TimeUnit.SECONDS)
            .getRequestStatus(
                GetRequestStatusRequest.newBuilder()
                    .setAccountName(Dev.ACCOUNT)
                    .setRequestId(ordered.requestId())
                    .build());
    assertEquals(ordered.requestId(), status.getStatus().getRequestId());
  }

  @Test
  void aWatchContinuesWithItsTokenUntilTheEnd(@TempDir Path folder) throws Exception {
    TokenStore store = new FileTokenStore(folder);
    WatchOptions options = WatchOptions.DEFAULT.withTokenStore(store);
    String id =
        client.order(Dev.ACCOUNT, List.of(device("89148000004292930400")), "token").requestId();
    Update first;
    try (Watch watch = client.watch(Dev.ACCOUNT, id, options)) {
      first = watch.iterator().next();
    }
    assertTrue(store.load(Dev.ACCOUNT, id).isEmpty(), "no other update was asked for");
    store.save(Dev.ACCOUNT, id, first.token());
    try (Watch watch = client.watch(Dev.ACCOUNT, id, options)) {
      watch.forEach(update -> assertTrue(update.revision() > first.revision()));
    }
    assertTrue(store.load(Dev.ACCOUNT, id).isEmpty(), "the final update was processed");
  }

  @Test
  void aPublisherDeliversTheUpdatesThatAreAskedFor() throws Exception {
    Ordered ordered =
        client.order(Dev.ACCOUNT, List.of(device("89148000004292930500")), "publisher");
    CompletableFuture<List<Update>> result = new CompletableFuture<>();
    client
        .publisher(Dev.ACCOUNT, ordered.requestId(), WatchOptions.DEFAULT)
        .subscribe(
            new Flow.Subscriber<Update>() {
              private final List<Update> updates = new ArrayList<>();
              private Flow.Subscription subscription;

              @Override
              public void onSubscribe(Flow.Subscription subscription) {
                this.subscription = subscription;
                subscription.request(1);
              }

              @Override
              public void onNext(Update update) {
                updates.add(update);
                subscription.request(1);
              }

              @Override
              public void onError(Throwable error) {
                result.completeExceptionally(error);
              }

              @Override
              public void onComplete() {
                result.complete(updates);
              }
            });
    List<Update> updates = result.get(Await.PATIENCE.toSeconds(), TimeUnit.SECONDS);
    assertEquals(1, updates.get(0).revision());
    assertEquals(RequestState.REQUEST_STATE_SUCCEEDED, updates.get(updates.size() - 1).state());
  }
}
