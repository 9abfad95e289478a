package com.thingspace.gateway;

import com.thingspace.esim.v1.DeviceIdentifiers;
import com.thingspace.esim.v1.DownloadProfileRequest;
import com.thingspace.esim.v1.EsimServiceGrpc;
import com.thingspace.esim.v1.EsimServiceGrpc.EsimServiceBlockingStub;
import io.grpc.CallCredentials;
import io.grpc.ManagedChannel;
import io.grpc.stub.AbstractStub;
import java.io.IOException;
import java.lang.System.Logger;
import java.time.Duration;
import java.util.List;
import java.util.Objects;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Flow;
import java.util.concurrent.Future;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import java.util.concurrent.SynchronousQueue;
import java.util.concurrent.ThreadFactory;
import java.util.concurrent.ThreadPoolExecutor;
import java.util.concurrent.TimeUnit;

/**
 * Calls one gateway, or the replicas of one gateway behind one name. Safe for use by several
 * threads. It has one connection for unary calls, and one for each 100 watches.
 *
 * <p>A call or watch also ends when the {@link io.grpc.Context} ends in which it began.
 */
public final class GatewayClient implements AutoCloseable {
  private static final int THREAD_IDLE_SECONDS = 10;

  private final Logger logger = System.getLogger(GatewayClient.class.getPackageName());
  private final Set<Operation> running = ConcurrentHashMap.newKeySet();
  private final ScheduledThreadPoolExecutor timer;
  private final ExecutorService executor;
  private final Optional<CallCredentials> callCredentials;
  private final Runnable stopCredentials;
  private final ManagedChannel unary;
  private final WatchChannels watchChannels;
  private volatile boolean closed;

  private GatewayClient(String target, Credentials credentials) throws IOException {
    credentials.check(target);
    // The threads end when there is nothing to do, so that a closed client leaves none.
    executor =
        new ThreadPoolExecutor(
            0,
            Integer.MAX_VALUE,
            THREAD_IDLE_SECONDS,
            TimeUnit.SECONDS,
            new SynchronousQueue<>(),
            threads("thingspace-gateway-calls"));
    timer = new ScheduledThreadPoolExecutor(1, threads("thingspace-gateway-timer"));
    timer.setRemoveOnCancelPolicy(true);
    timer.setKeepAliveTime(THREAD_IDLE_SECONDS, TimeUnit.SECONDS);
    timer.allowCoreThreadTimeOut(true);
    Credentials.ForConnections forConnections = credentials.forConnections(timer);
    stopCredentials = forConnections.stop();
    callCredentials = credentials.forCalls();
    Connector connector = new Connector(target, forConnections.credentials(), timer, executor);
    unary = connector.openForUnaryCalls();
    watchChannels = new WatchChannels(connector::openForWatches);
  }

  private static ThreadFactory threads(String name) {
    return task -> {
      Thread thread = new Thread(task, name);
      thread.setDaemon(true);
      return thread;
    };
  }

  /**
   * Returns a client of the gateway at a target, without waiting for a connection: calls wait for
   * it. If the name of the target has several addresses, calls go to all of them in turn.
   *
   * @param target {@code host:port}, or a target with a scheme that gRPC for Java knows, such as
   *     {@code dns:///host:port}
   * @param credentials how the client proves who it is, and verifies the gateway
   * @return the client, which the caller must close
   * @throws IOException if a file of the credentials cannot be used
   * @throws IllegalArgumentException if the target or the credentials are wrong, or a token would
   *     be sent without TLS
   */
  public static GatewayClient connect(String target, Credentials credentials) throws IOException {
    return new GatewayClient(target, credentials);
  }

  /**
   * Places an order, like {@link #order(String, List, String, OrderOptions)} with {@link
   * OrderOptions#DEFAULT}.
   *
   * @param account the ThingSpace billing account
   * @param devices the devices
   * @param idempotencyKey the caller's name for the order
   * @return the request
   */
  public Ordered order(String account, List<DeviceIdentifiers> devices, String idempotencyKey) {
    return order(account, devices, idempotencyKey, OrderOptions.DEFAULT);
  }

  /**
   * Places an order of eSIM profiles for devices. It repeats the call with the same key until it
   * knows the outcome, or until the timeout.
   *
   * <p>The same key never orders twice. Create it before the first call, store it with your own
   * record, and use it in every repetition. The client does not create it: the key would be lost
   * with the process, and the order could not be repeated safely.
   *
   * <p>An interrupt of the thread ends the call with CANCELLED, and the thread stays interrupted.
   *
   * @param account the ThingSpace billing account, such as {@code 0000123456-00001}
   * @param devices the 1 to 10,000 devices, each with its EID and ICCID, and optionally its IMEI
   * @param idempotencyKey the caller's name for the order, such as a UUID
   * @param options the optional settings
   * @return the request
   * @throws UnknownOutcomeException if the order may or may not be placed
   * @throws GatewayException if this call has not placed the order; its explanation says what to do
   */
  public Ordered order(
      String account,
      List<DeviceIdentifiers> devices,
      String idempotencyKey,
      OrderOptions options) {
    DownloadProfileRequest request =
        DownloadProfileRequest.newBuilder()
            .setAccountName(account)
            .addAllDevices(devices)
            .setServicePlan(options.servicePlan())
            .setIdempotencyKey(idempotencyKey)
            .build();
    try (Operation operation = begin()) {
      return new OrderCall(stub(), logger, request, operation, options.timeout()).run();
    }
  }

  /**
   * Watches a request with {@link WatchOptions#DEFAULT}.
   *
   * @param account the ThingSpace billing account
   * @param requestId the id of the request
   * @return the updates, which the caller must close
   */
  public Watch watch(String account, String requestId) {
    return watch(account, requestId, WatchOptions.DEFAULT);
  }

  /**
   * Watches a request until it is final. Nothing is sent before the first update is asked for.
   *
   * @param account the ThingSpace billing account
   * @param requestId the id of the request
   * @param options the optional settings
   * @return the updates, which the caller must close
   */
  public Watch watch(String account, String requestId, WatchOptions options) {
    Objects.requireNonNull(account);
    Objects.requireNonNull(requestId);
    return new Watch(this, account, requestId, Objects.requireNonNull(options));
  }

  /**
   * Returns a publisher of the updates that {@link #watch(String, String, WatchOptions)} returns.
   * Each subscription is a watch of its own. It needs no thread while it waits.
   *
   * <p>An update is processed when {@code onNext} has returned and the subscriber has asked for a
   * further one: only then its token is saved. So a subscriber that works on an update after {@code
   * onNext} must ask for one update at a time. The final update is followed by {@code onComplete}
   * only when the subscriber has asked for a further update.
   *
   * @param account the ThingSpace billing account
   * @param requestId the id of the request
   * @param options the optional settings
   * @return the publisher
   */
  public Flow.Publisher<Update> publisher(String account, String requestId, WatchOptions options) {
    Objects.requireNonNull(account);
    Objects.requireNonNull(requestId);
    Objects.requireNonNull(options);
    return subscriber -> {
      Objects.requireNonNull(subscriber);
      new WatchSubscription(this, account, requestId, options, subscriber).start();
    };
  }

  /**
   * Says what an error of this package or of a gRPC call means. It looks at the causes of an error,
   * too. An error without a gRPC error has the code UNKNOWN and is not safe to repeat.
   *
   * @param error the error
   * @return the explanation
   */
  public static Explanation explain(Throwable error) {
    return Explanation.of(error);
  }

  /**
   * Returns the generated stub for plain calls such as GetRequestStatus. Its connection has the
   * recommended service config, which retries calls that fail with UNAVAILABLE.
   *
   * @return the stub
   */
  public EsimServiceBlockingStub stub() {
    return withCredentials(EsimServiceGrpc.newBlockingStub(unary));
  }

  /**
   * Ends all calls and watches with CANCELLED, and closes the connections. Further calls do
   * nothing.
   */
  @Override
  public void close() {
    closed = true;
    running.forEach(operation -> operation.end("the client is closed", null));
    watchChannels.close();
    unary.shutdownNow();
    stopCredentials.run();
  }

  /** Begins an operation, which the caller must close. */
  Operation begin() {
    Operation operation = new Operation(running);
    if (closed) {
      operation.end("the client is closed", null);
    }
    return operation;
  }

  WatchChannels watchChannels() {
    return watchChannels;
  }

  Logger logger() {
    return logger;
  }

  <T extends AbstractStub<T>> T withCredentials(T stub) {
    return callCredentials.map(stub::withCallCredentials).orElse(stub);
  }

  /** Runs a task after a time, not on the thread of the timer. */
  Future<?> schedule(Duration wait, Runnable task) {
    return timer.schedule(() -> executor.execute(task), wait.toNanos(), TimeUnit.NANOSECONDS);
  }
}
