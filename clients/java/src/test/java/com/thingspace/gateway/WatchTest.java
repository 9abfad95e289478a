package com.thingspace.gateway;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.thingspace.esim.v1.DeviceStatus;
import com.thingspace.esim.v1.RequestState;
import com.thingspace.esim.v1.WatchRequestRequest;
import io.grpc.Context;
import io.grpc.Status;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Flow;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/** How watches are delivered and resumed. */
class WatchTest {
  private static final RequestState PENDING = RequestState.REQUEST_STATE_PENDING;
  private static final RequestState SUCCEEDED = RequestState.REQUEST_STATE_SUCCEEDED;

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

  private List<Update> watch(WatchOptions options) {
    List<Update> updates = new ArrayList<>();
    try (Watch watch = client.watch("account", "request", options)) {
      watch.forEach(updates::add);
    }
    return updates;
  }

  private GatewayException failedWatch() {
    return assertThrows(GatewayException.class, () -> watch(WatchOptions.DEFAULT));
  }

  private static List<Long> revisions(List<Update> updates) {
    return updates.stream().map(Update::revision).toList();
  }

  private static List<String> iccids(Update update) {
    return update.devices().stream().map(WatchTest::iccid).toList();
  }

  private static String iccid(DeviceStatus device) {
    return device.getIdentifiers().getIccid();
  }

  private List<String> resumeTokens() {
    return peer.watches.stream().map(WatchRequestRequest::getResumeToken).toList();
  }

  @Test
  void fragmentsOfARevisionAreMergedAndHeartbeatsAreNotDelivered() {
    peer.answerWatches(
        Peer.send(
            List.of(
                Peer.part(Peer.snapshot(1, PENDING, "a", "b")),
                Peer.part(Peer.snapshot(1, PENDING, "c")),
                Peer.snapshot(1, PENDING, "d"),
                Peer.heartbeat(1),
                Peer.part(Peer.change(3, PENDING, "a")),
                Peer.change(3, SUCCEEDED, "b")),
            Peer.end()));
    List<Update> updates = watch(WatchOptions.DEFAULT);
    assertEquals(List.of(1L, 3L), revisions(updates));
    assertEquals(List.of("a", "b", "c", "d"), iccids(updates.get(0)));
    assertEquals("token-1", updates.get(0).token());
    assertEquals(List.of("a", "b"), iccids(updates.get(1)));
    assertEquals(SUCCEEDED, updates.get(1).state());
    assertFalse(updates.toString().contains("token"));
  }

  @Test
  void aBrokenStreamIsResumedWithoutIncompleteFragmentsAndRepeatedUpdates() {
    peer.answerWatches(
        Peer.send(
            List.of(Peer.snapshot(1, PENDING, "a", "b"), Peer.part(Peer.change(2, PENDING, "a"))),
            Peer.fail(Status.Code.UNAVAILABLE, "STREAM_AGE", Map.of())),
        Peer.send(
            List.of(Peer.heartbeat(1), Peer.change(2, PENDING, "a")),
            Peer.fail(Status.Code.INTERNAL)),
        Peer.send(
            List.of(Peer.snapshot(2, PENDING, "a", "b"), Peer.change(3, SUCCEEDED, "b")),
            Peer.end()));
    List<Update> updates = watch(WatchOptions.DEFAULT);
    assertEquals(List.of(1L, 2L, 3L), revisions(updates));
    assertEquals(List.of("a"), iccids(updates.get(1)));
    assertEquals(List.of("", "token-1", "token-2"), resumeTokens());
  }

  @Test
  void aTokenThatTheGatewayRefusesMeansASnapshot() {
    peer.answerWatches(
        Peer.fail(Status.Code.INVALID_ARGUMENT, "INVALID_RESUME_TOKEN", Map.of()),
        Peer.send(List.of(Peer.snapshot(4, SUCCEEDED, "a")), Peer.end()));
    assertEquals(List.of(4L), revisions(watch(WatchOptions.DEFAULT.withToken("old"))));
    assertEquals(List.of("old", ""), resumeTokens());
    peer.answerWatches(Peer.fail(Status.Code.INVALID_ARGUMENT, "INVALID_RESUME_TOKEN", Map.of()));
    assertEquals("INVALID_RESUME_TOKEN", failedWatch().explanation().reason());
  }

  @Test
  void credentialsThatHaveExpiredAreRenewedOnce() {
    var refuse =
        Peer.<com.thingspace.esim.v1.WatchRequestResponse>fail(
            Status.Code.UNAUTHENTICATED, "CALLER_UNAUTHENTICATED", Map.of());
    peer.answerWatches(Peer.send(List.of(Peer.snapshot(1, PENDING, "a")), refuse), refuse);
    assertEquals(Status.Code.UNAUTHENTICATED, failedWatch().explanation().code());
    assertEquals(List.of("", "token-1"), resumeTokens());
  }

  @Test
  void otherErrorsEndTheWatch() {
    for (String reason : List.of("REQUEST_NOT_FOUND", "CALLER_NOT_ALLOWED", "STILL_PENDING")) {
      peer.watches.clear();
      peer.answerWatches(Peer.fail(Status.Code.FAILED_PRECONDITION, reason, Map.of()));
      assertEquals(reason, failedWatch().explanation().reason());
      assertEquals(1, peer.watches.size());
    }
  }

  @Test
  void aSilentStreamIsCancelledAndResumed() throws Exception {
    peer.answerWatches(
        call -> {
          // A slow machine may also break a stream before its first message.
          if (peer.watches.get(peer.watches.size() - 1).getResumeToken().isEmpty()) {
            call.onNext(Peer.snapshot(1, PENDING, "a"));
          } else {
            call.onNext(Peer.change(2, SUCCEEDED, "a"));
            call.onCompleted();
          }
        });
    WatchOptions options = WatchOptions.DEFAULT.withIdleTimeout(Duration.ofMillis(500));
    assertEquals(List.of(1L, 2L), revisions(watch(options)));
    Await.until("the end of all streams", () -> peer.openWatches.get() == 0);
  }

  @Test
  void theTimeOfTheConsumerIsNotSilence() throws Exception {
    peer.answerWatches(Peer.send(List.of(Peer.snapshot(1, PENDING, "a")), Peer.silence()));
    Duration idleTimeout = Duration.ofMillis(500);
    WatchOptions options = WatchOptions.DEFAULT.withIdleTimeout(idleTimeout);
    try (Watch watch = client.watch("account", "request", options)) {
      watch.iterator().next();
      int streams = peer.watches.size();
      // The consumer works for longer than the idle timeout.
      Thread.sleep(3 * idleTimeout.toMillis());
      assertEquals(streams, peer.watches.size());
    }
  }

  @Test
  void closingInAnotherThreadEndsTheCallAtOnce() throws Exception {
    peer.answerWatches(Peer.send(List.of(Peer.snapshot(1, PENDING, "a")), Peer.silence()));
    Watch watch = client.watch("account", "request");
    Iterator<Update> updates = watch.iterator();
    updates.next();
    CompletableFuture<Boolean> waiting = CompletableFuture.supplyAsync(updates::hasNext);
    watch.close();
    watch.close();
    GatewayException error = failure(waiting);
    assertEquals(Status.Code.CANCELLED, error.explanation().code());
    assertFalse(error.explanation().safeToRepeat());
    Await.until("the end of the call", () -> peer.openWatches.get() == 0);
    assertThrows(IllegalStateException.class, watch::iterator);
  }

  @Test
  void anInterruptEndsTheCallAtOnce() throws Exception {
    peer.answerWatches(Peer.send(List.of(Peer.snapshot(1, PENDING, "a")), Peer.silence()));
    CompletableFuture<GatewayException> result = new CompletableFuture<>();
    Thread thread =
        new Thread(
            () -> {
              GatewayException error = failedWatch();
              assertTrue(Thread.currentThread().isInterrupted());
              result.complete(error);
            });
    thread.start();
    Await.until("the call", () -> peer.openWatches.get() == 1);
    thread.interrupt();
    GatewayException error = result.get(Await.PATIENCE.toSeconds(), TimeUnit.SECONDS);
    assertEquals("the thread was interrupted", error.explanation().message());
    Await.until("the end of the call", () -> peer.openWatches.get() == 0);
  }

  @Test
  void theContextOfTheCallerEndsTheWatch() throws Exception {
    peer.answerWatches(Peer.send(List.of(Peer.snapshot(1, PENDING, "a")), Peer.silence()));
    Context.CancellableContext context = Context.current().withCancellation();
    Watch watch = context.call(() -> client.watch("account", "request"));
    Iterator<Update> updates = watch.iterator();
    updates.next();
    context.cancel(null);
    GatewayException error = assertThrows(GatewayException.class, updates::hasNext);
    assertEquals(Status.Code.CANCELLED, error.explanation().code());
    Await.until("the end of the call", () -> peer.openWatches.get() == 0);
  }

  @Test
  void closingTheClientEndsItsWatchesAndConnections() throws Exception {
    peer.answerWatches(Peer.send(List.of(Peer.snapshot(1, PENDING, "a")), Peer.silence()));
    Watch watch = client.watch("account", "request");
    Iterator<Update> updates = watch.iterator();
    updates.next();
    client.close();
    GatewayException error = assertThrows(GatewayException.class, updates::hasNext);
    assertEquals("the client is closed", error.explanation().message());
    assertEquals("the client is closed", failedWatch().explanation().message());
    Await.until("no connection", () -> peer.openConnections.get() == 0);
  }

  @Test
  void aConnectionHasAtMost100Watches() throws Exception {
    peer.answerWatches(Peer.send(List.of(Peer.snapshot(1, PENDING, "a")), Peer.silence()));
    List<Watch> watches = new ArrayList<>();
    for (int i = 0; i < 101; i++) {
      Watch watch = client.watch("account", "request");
      watch.iterator().next();
      watches.add(watch);
    }
    assertEquals(2, peer.openConnections.get());
    watches.get(100).close();
    Await.until("one connection", () -> peer.openConnections.get() == 1);
    watches.forEach(Watch::close);
    Await.until("no watch", () -> peer.openWatches.get() == 0);
    assertEquals(1, peer.openConnections.get(), "the only one stays open");
  }

  @Test
  void aSlowConsumerMakesTheWindowFullAndMissesNothing() throws Exception {
    String[] many = new String[2000];
    java.util.Arrays.setAll(many, i -> "8914800000429293" + i);
    CompletableFuture<Integer> sent = new CompletableFuture<>();
    peer.answerWatches(
        call -> {
          var stream = (io.grpc.stub.ServerCallStreamObserver<?>) call;
          call.onNext(Peer.snapshot(1, PENDING, many));
          int revision = 1;
          while (stream.isReady() && revision < 1000) {
            revision++;
            call.onNext(Peer.change(revision, PENDING, many));
          }
          sent.complete(revision);
          call.onError(Peer.error(Status.Code.UNAVAILABLE, "SLOW_READER", Map.of()));
        },
        Peer.send(List.of(Peer.change(2000, SUCCEEDED, "a")), Peer.end()));
    try (Watch watch = client.watch("account", "request")) {
      Iterator<Update> updates = watch.iterator();
      assertEquals(1, updates.next().revision());
      int last = sent.get(Await.PATIENCE.toSeconds(), TimeUnit.SECONDS);
      assertTrue(last < 20, last + " messages were taken from the peer");
      for (int revision = 2; revision <= last; revision++) {
        assertEquals(revision, updates.next().revision());
      }
      assertEquals(2000, updates.next().revision());
      assertEquals("token-" + last, resumeTokens().get(1));
    }
  }

  @Test
  void aTokenIsSavedWhenTheNextUpdateIsAskedFor() {
    peer.answerWatches(
        Peer.send(
            List.of(Peer.snapshot(8, PENDING, "a"), Peer.change(9, SUCCEEDED, "a")), Peer.end()));
    List<String> log = new ArrayList<>();
    try (Watch watch =
        client.watch("account", "request", WatchOptions.DEFAULT.withTokenStore(logging(log)))) {
      for (Update update : watch) {
        log.add("update " + update.revision());
      }
    }
    assertEquals(
        List.of("load", "update 8", "save token-8", "update 9", "save token-9", "delete"), log);
    assertEquals(List.of("loaded"), resumeTokens());
  }

  @Test
  void aTokenThatIsPassedHasPrecedence() {
    peer.answerWatches(Peer.send(List.of(Peer.snapshot(9, SUCCEEDED, "a")), Peer.end()));
    watch(WatchOptions.DEFAULT.withTokenStore(logging(new ArrayList<>())).withToken("passed"));
    assertEquals(List.of("passed"), resumeTokens());
  }

  private static TokenStore logging(List<String> log) {
    return new TokenStore() {
      @Override
      public Optional<String> load(String account, String requestId) {
        log.add("load");
        return Optional.of("loaded");
      }

      @Override
      public void save(String account, String requestId, String token) {
        log.add("save " + token);
      }

      @Override
      public void delete(String account, String requestId) {
        log.add("delete");
      }
    };
  }

  @Test
  void anErrorOfTheTokenStoreEndsTheWatch() throws Exception {
    peer.answerWatches(Peer.send(List.of(Peer.snapshot(1, PENDING, "a")), Peer.silence()));
    TokenStore broken =
        new TokenStore() {
          @Override
          public Optional<String> load(String account, String requestId) {
            return Optional.empty();
          }

          @Override
          public void save(String account, String requestId, String token) throws IOException {
            throw new IOException("the disk is full");
          }

          @Override
          public void delete(String account, String requestId) {}
        };
    try (Watch watch =
        client.watch("account", "request", WatchOptions.DEFAULT.withTokenStore(broken))) {
      Iterator<Update> updates = watch.iterator();
      updates.next();
      assertThrows(UncheckedIOException.class, updates::hasNext);
      Await.until("the end of the call", () -> peer.openWatches.get() == 0);
    }
  }

  @Test
  void aSubscriberGetsNoMoreThanItAsksFor() throws Exception {
    peer.answerWatches(
        Peer.send(
            List.of(
                Peer.snapshot(1, PENDING, "a"),
                Peer.change(2, PENDING, "a"),
                Peer.change(3, SUCCEEDED, "a")),
            Peer.end()));
    Recorder recorder = new Recorder();
    client.publisher("account", "request", WatchOptions.DEFAULT).subscribe(recorder);
    assertEquals(0, peer.watches.size(), "nothing is sent without demand");
    recorder.subscription.request(2);
    Await.until("two updates", () -> recorder.updates.size() == 2);
    recorder.subscription.request(Long.MAX_VALUE);
    recorder.end.get(Await.PATIENCE.toSeconds(), TimeUnit.SECONDS);
    assertEquals(List.of(1L, 2L, 3L), revisions(recorder.updates));
  }

  @Test
  void aSubscriberThatCancelsGetsNothingMore() throws Exception {
    peer.answerWatches(Peer.send(List.of(Peer.snapshot(1, PENDING, "a")), Peer.silence()));
    Recorder recorder = new Recorder();
    client.publisher("account", "request", WatchOptions.DEFAULT).subscribe(recorder);
    recorder.subscription.request(2);
    Await.until("an update", () -> recorder.updates.size() == 1);
    recorder.subscription.cancel();
    Await.until("the end of the call", () -> peer.openWatches.get() == 0);
    recorder.subscription.request(1);
    client.close();
    assertFalse(recorder.end.isDone());
  }

  @Test
  void aSubscriberThatFailsEndsTheWatch() throws Exception {
    peer.answerWatches(Peer.send(List.of(Peer.snapshot(1, PENDING, "a")), Peer.silence()));
    Recorder recorder = new Recorder();
    recorder.failure = new IllegalStateException("a defect of the subscriber");
    client.publisher("account", "request", WatchOptions.DEFAULT).subscribe(recorder);
    recorder.subscription.request(1);
    assertEquals(recorder.failure, cause(recorder.end));
    Await.until("the end of the call", () -> peer.openWatches.get() == 0);
  }

  @Test
  void aSubscriberMustAskForSomething() throws Exception {
    Recorder recorder = new Recorder();
    client.publisher("account", "request", WatchOptions.DEFAULT).subscribe(recorder);
    recorder.subscription.request(0);
    assertEquals(IllegalArgumentException.class, cause(recorder.end).getClass());
  }

  private static GatewayException failure(CompletableFuture<?> future) throws Exception {
    return (GatewayException) cause(future);
  }

  private static Throwable cause(CompletableFuture<?> future) {
    return assertThrows(
            java.util.concurrent.ExecutionException.class,
            () -> future.get(Await.PATIENCE.toSeconds(), TimeUnit.SECONDS))
        .getCause();
  }

  private static final class Recorder implements Flow.Subscriber<Update> {
    private final List<Update> updates = java.util.Collections.synchronizedList(new ArrayList<>());
    private final CompletableFuture<Void> end = new CompletableFuture<>();
    private Flow.Subscription subscription;
    private RuntimeException failure;

    @Override
    public void onSubscribe(Flow.Subscription subscription) {
      this.subscription = subscription;
    }

    @Override
    public void onNext(Update update) {
      updates.add(update);
      if (failure != null) {
        throw failure;
      }
    }

    @Override
    public void onError(Throwable error) {
      end.completeExceptionally(error);
    }

    @Override
    public void onComplete() {
      end.complete(null);
    }
  }
}
