package com.thingspace.gateway;

import static java.nio.charset.StandardCharsets.UTF_8;

import com.google.gson.Gson;
import com.google.gson.reflect.TypeToken;
import io.grpc.ChannelCredentials;
import io.grpc.ConnectivityState;
import io.grpc.ManagedChannel;
import io.grpc.netty.shaded.io.grpc.netty.NettyChannelBuilder;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.util.Map;
import java.util.concurrent.Executor;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;

/** Opens the connections of a client. */
final class Connector {
  private static final int MAX_RECONNECT_SECONDS = 2;

  /**
   * The bytes that a watch buffers for a slow consumer, besides one message. Without this, gRPC
   * buffers up to 8 MiB, and the gateway does not notice the slow reader.
   */
  private static final int WATCH_WINDOW = 64 << 10;

  private static final Map<String, ?> SERVICE_CONFIG = readServiceConfig();

  private final String target;
  private final ChannelCredentials credentials;
  private final ScheduledExecutorService timer;
  private final Executor executor;

  Connector(
      String target,
      ChannelCredentials credentials,
      ScheduledExecutorService timer,
      Executor executor) {
    this.target = target;
    this.credentials = credentials;
    this.timer = timer;
    this.executor = executor;
  }

  ManagedChannel openForUnaryCalls() {
    return open(builder());
  }

  ManagedChannel openForWatches() {
    return open(builder().flowControlWindow(WATCH_WINDOW));
  }

  private NettyChannelBuilder builder() {
    return NettyChannelBuilder.forTarget(target, credentials)
        .defaultServiceConfig(SERVICE_CONFIG)
        .enableRetry()
        .keepAliveTime(1, TimeUnit.MINUTES)
        .keepAliveTimeout(20, TimeUnit.SECONDS)
        .executor(executor);
  }

  private ManagedChannel open(NettyChannelBuilder builder) {
    ManagedChannel channel = builder.build();
    new Reconnection(channel).observe();
    return channel;
  }

  private static Map<String, ?> readServiceConfig() {
    try (InputStream file = Connector.class.getResourceAsStream("service-config.json")) {
      // Gson reads numbers as Double, as gRPC wants them.
      return new Gson().fromJson(new String(file.readAllBytes(), UTF_8), new TypeToken<>() {});
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  /**
   * Limits the pauses between attempts to connect. gRPC for Java has no setting for that, and
   * doubles them up to 2 minutes.
   */
  private final class Reconnection {
    private final ManagedChannel channel;
    private boolean waiting;

    Reconnection(ManagedChannel channel) {
      this.channel = channel;
    }

    synchronized void observe() {
      ConnectivityState state = channel.getState(false);
      if (state == ConnectivityState.SHUTDOWN) {
        return;
      }
      if (state == ConnectivityState.TRANSIENT_FAILURE && !waiting) {
        waiting = true;
        schedule();
      }
      channel.notifyWhenStateChanged(state, this::observe);
    }

    private synchronized void reconnect() {
      waiting = channel.getState(false) == ConnectivityState.TRANSIENT_FAILURE;
      if (waiting) {
        channel.resetConnectBackoff();
        schedule();
      }
    }

    private void schedule() {
      timer.schedule(this::reconnect, MAX_RECONNECT_SECONDS, TimeUnit.SECONDS);
    }
  }
}
