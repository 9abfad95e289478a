package com.thingspace.gateway;

import com.thingspace.esim.v1.DeviceStatus;
import com.thingspace.esim.v1.ErrorReason;
import com.thingspace.esim.v1.EsimServiceGrpc;
import com.thingspace.esim.v1.WatchRequestRequest;
import com.thingspace.esim.v1.WatchRequestResponse;
import io.grpc.Context;
import io.grpc.Status;
import io.grpc.SynchronizationContext;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientResponseObserver;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.System.Logger.Level;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.Flow;
import java.util.concurrent.Future;

/**
 * One watch. It opens a stream, delivers its updates as they are asked for, and resumes it when it
 * breaks. It needs no thread while it waits.
 *
 * <p>All fields that are not final belong to {@link #sync}, which runs one task at a time.
 */
final class WatchSubscription implements Flow.Subscription {
  private final GatewayClient client;
  private final String account;
  private final String requestId;
  private final WatchOptions options;
  private final Flow.Subscriber<? super Update> subscriber;
  private final Operation operation;
  private final SynchronizationContext sync =
      new SynchronizationContext((thread, error) -> fail(error));

  private boolean done;

  /** Whether the subscriber has cancelled, and gets no further signals. */
  private boolean cancelled;

  /** The number of updates that the subscriber has asked for and not got. */
  private long demand;

  private WatchChannels.Slot slot;

  /** Null while no stream is open. */
  private Stream stream;

  /** Whether a broken stream will be opened again after a pause. */
  private boolean pausing;

  private Future<?> timer;
  private long timers;

  /** The token of the last complete revision. */
  private String token;

  /** The token of the update that is being processed, or null. */
  private String unsaved;

  /** The revision of the last update. */
  private long revision = -1;

  /** Whether the gateway has accepted the credentials since it last refused them. */
  private boolean accepted;

  private final Backoff backoff = new Backoff();

  WatchSubscription(
      GatewayClient client,
      String account,
      String requestId,
      WatchOptions options,
      Flow.Subscriber<? super Update> subscriber) {
    this.client = client;
    this.account = account;
    this.requestId = requestId;
    this.options = options;
    this.subscriber = subscriber;
    this.token = options.token();
    this.operation = client.begin();
  }

  /** Begins the watch. Nothing is sent before the subscriber asks for an update. */
  void start() {
    subscriber.onSubscribe(this);
    operation.context().addListener(context -> sync.execute(this::ended), Runnable::run);
  }

  @Override
  public void request(long n) {
    sync.execute(
        () -> {
          if (n <= 0) {
            fail(new IllegalArgumentException("a subscriber must request at least one update"));
            return;
          }
          demand = n > Long.MAX_VALUE - demand ? Long.MAX_VALUE : demand + n;
          advance();
        });
  }

  @Override
  public void cancel() {
    // First the flag, then the end: it is delivered to a subscriber that has not cancelled.
    sync.execute(() -> cancelled = true);
    end("the subscription was cancelled", null);
  }

  /** Ends the watch and its call at once, with an error for the subscriber. */
  void end(String why, Throwable cause) {
    operation.end(why, cause);
  }

  private void ended() {
    finish(() -> subscriber.onError(operation.ended(null)));
  }

  private void fail(Throwable error) {
    Throwable reported = operation.isEnded() ? operation.ended(error) : error;
    finish(() -> subscriber.onError(reported));
  }

  private void finish(Runnable signal) {
    if (done) {
      return;
    }
    done = true;
    clearTimer();
    operation.close();
    if (slot != null) {
      client.watchChannels().release(slot);
    }
    if (!cancelled) {
      signal.run();
    }
  }

  /** Does what is next, if the subscriber waits for an update. */
  private void advance() {
    if (done || demand == 0) {
      return;
    }
    try {
      if (unsaved != null) {
        options.tokenStore().save(account, requestId, unsaved);
        unsaved = null;
      }
      if (slot == null) {
        begin();
      } else if (stream != null && stream.end != null) {
        streamEnded();
      } else if (stream != null) {
        stream.next();
      } else if (!pausing) {
        open();
      }
    } catch (IOException e) {
      fail(new UncheckedIOException(e));
    }
  }

  private void begin() throws IOException {
    slot = client.watchChannels().acquire();
    if (token.isEmpty()) {
      token = options.tokenStore().load(account, requestId).orElse("");
    }
    open();
  }

  private void open() {
    WatchRequestRequest request =
        WatchRequestRequest.newBuilder()
            .setAccountName(account)
            .setRequestId(requestId)
            .setResumeToken(token)
            .build();
    stream = new Stream();
    Context previous = operation.context().attach();
    try {
      client.withCredentials(EsimServiceGrpc.newStub(slot.channel())).watchRequest(request, stream);
    } finally {
      operation.context().detach(previous);
    }
    setTimer(options.idleTimeout(), this::idle);
  }

  private void receive(WatchRequestResponse message) {
    clearTimer(); // The time of the subscriber does not count.
    accepted = true;
    backoff.reset();
    if (message.getMore()) {
      stream.parts.addAll(devices(message));
      stream.next();
      return;
    }
    if (!message.getResumeToken().isEmpty()) {
      token = message.getResumeToken();
    }
    Optional<Update> update = update(message, stream.parts);
    stream.parts.clear();
    // After a restart with a snapshot, the last revision may come again.
    if (update.isPresent() && update.get().revision() != revision) {
      deliver(update.get());
    }
    advance();
  }

  private void deliver(Update update) {
    revision = update.revision();
    demand--;
    subscriber.onNext(update);
    unsaved = update.token();
  }

  private static List<DeviceStatus> devices(WatchRequestResponse message) {
    return message.hasSnapshot()
        ? message.getSnapshot().getDevicesList()
        : message.getChange().getDevicesList();
  }

  /** Returns the update of a message and the earlier parts of its revision; none of a heartbeat. */
  private static Optional<Update> update(WatchRequestResponse message, List<DeviceStatus> earlier) {
    String token = message.getResumeToken();
    return switch (message.getEventCase()) {
      case SNAPSHOT -> {
        var status = message.getSnapshot();
        if (!earlier.isEmpty()) {
          status =
              status.toBuilder()
                  .clearDevices()
                  .addAllDevices(earlier)
                  .addAllDevices(status.getDevicesList())
                  .build();
        }
        yield Optional.of(new Update.Snapshot(status, token));
      }
      case CHANGE -> {
        var change = message.getChange();
        if (!earlier.isEmpty()) {
          change =
              change.toBuilder()
                  .clearDevices()
                  .addAllDevices(earlier)
                  .addAllDevices(change.getDevicesList())
                  .build();
        }
        yield Optional.of(new Update.Change(change, token));
      }
      default -> Optional.empty();
    };
  }

  private void streamEnded() throws IOException {
    if (stream.end.isOk()) {
      options.tokenStore().delete(account, requestId);
      finish(subscriber::onComplete);
    } else {
      resume(Explanation.of(stream.end, stream.trailers, false), stream.error);
    }
  }

  private void idle() {
    Status status = Status.UNAVAILABLE.withDescription("no message came within the idle timeout");
    stream.call.cancel(status.getDescription(), null);
    resume(Explanation.of(status, null, false), status.asRuntimeException());
  }

  private void resume(Explanation explanation, Throwable error) {
    if (explanation.hasReason(ErrorReason.ERROR_REASON_INVALID_RESUME_TOKEN) && !token.isEmpty()) {
      token = "";
    } else if (explanation.code() == Status.Code.UNAUTHENTICATED && accepted) {
      // The credentials have expired. If new ones are refused, too, they are wrong.
      accepted = false;
    } else if (!explanation.safeToRepeat()) {
      fail(new GatewayException(explanation, error));
      return;
    }
    Duration pause = backoff.next();
    Duration wait =
        Durations.max(pause, explanation.retryDelay().orElse(pause)).plus(backoff.jitter());
    client
        .logger()
        .log(
            Level.DEBUG,
            "resuming a watch: account={0} request_id={1} code={2} reason={3} wait={4}",
            account,
            requestId,
            explanation.code(),
            explanation.reason(),
            wait);
    stream = null;
    pausing = true;
    setTimer(
        wait,
        () -> {
          pausing = false;
          advance();
        });
  }

  /** Sets the only timer of the watch. */
  private void setTimer(Duration wait, Runnable task) {
    clearTimer();
    long number = timers;
    timer =
        client.schedule(
            wait,
            () ->
                sync.execute(
                    () -> {
                      if (number == timers) {
                        task.run();
                      }
                    }));
  }

  private void clearTimer() {
    timers++;
    if (timer != null) {
      timer.cancel(false);
      timer = null;
    }
  }

  /** One call. Its events count only while it is the current one. */
  private final class Stream
      implements ClientResponseObserver<WatchRequestRequest, WatchRequestResponse> {
    private ClientCallStreamObserver<WatchRequestRequest> call;

    /** The devices of the earlier parts of the current revision. */
    private final List<DeviceStatus> parts = new ArrayList<>();

    /** Whether a message is asked for. */
    private boolean asked = true;

    /** How the call has ended, or null. */
    private Status end;

    private io.grpc.Metadata trailers;
    private Throwable error;

    @Override
    public void beforeStart(ClientCallStreamObserver<WatchRequestRequest> call) {
      this.call = call;
      call.disableAutoRequestWithInitial(1);
    }

    /** Asks for a message, unless one is asked for already. */
    private void next() {
      if (!asked) {
        asked = true;
        call.request(1);
        setTimer(options.idleTimeout(), WatchSubscription.this::idle);
      }
    }

    @Override
    public void onNext(WatchRequestResponse message) {
      execute(
          () -> {
            asked = false;
            receive(message);
          });
    }

    @Override
    public void onError(Throwable error) {
      execute(
          () -> {
            clearTimer();
            this.error = error;
            end = Status.fromThrowable(error);
            trailers = Status.trailersFromThrowable(error);
            advance();
          });
    }

    @Override
    public void onCompleted() {
      execute(
          () -> {
            clearTimer();
            end = Status.OK;
            advance();
          });
    }

    private void execute(Runnable event) {
      sync.execute(
          () -> {
            if (!done && stream == this) {
              event.run();
            }
          });
    }
  }
}
