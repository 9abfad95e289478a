package com.thingspace.gateway;

import com.google.protobuf.Any;
import com.google.protobuf.Message;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import com.thingspace.esim.v1.DeviceCounts;
import com.thingspace.esim.v1.DeviceIdentifiers;
import com.thingspace.esim.v1.DeviceStatus;
import com.thingspace.esim.v1.DownloadProfileRequest;
import com.thingspace.esim.v1.DownloadProfileResponse;
import com.thingspace.esim.v1.EsimServiceGrpc;
import com.thingspace.esim.v1.Heartbeat;
import com.thingspace.esim.v1.RequestChange;
import com.thingspace.esim.v1.RequestState;
import com.thingspace.esim.v1.RequestStatus;
import com.thingspace.esim.v1.WatchRequestRequest;
import com.thingspace.esim.v1.WatchRequestResponse;
import io.grpc.Attributes;
import io.grpc.InsecureServerCredentials;
import io.grpc.Metadata;
import io.grpc.Server;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerCredentials;
import io.grpc.ServerInterceptor;
import io.grpc.ServerTransportFilter;
import io.grpc.Status;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.ServerCallStreamObserver;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.Consumer;

/** A real gRPC server that answers as a test says, for faults that the gateway rarely produces. */
final class Peer extends EsimServiceGrpc.EsimServiceImplBase implements AutoCloseable {
  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

  final List<DownloadProfileRequest> orders = Collections.synchronizedList(new ArrayList<>());
  final List<WatchRequestRequest> watches = Collections.synchronizedList(new ArrayList<>());
  final List<String> tokens = Collections.synchronizedList(new ArrayList<>());
  final AtomicInteger openWatches = new AtomicInteger();
  final AtomicInteger openConnections = new AtomicInteger();

  /** The names of the client certificates of all connections. */
  final List<String> clients = Collections.synchronizedList(new ArrayList<>());

  final int port;

  private final Server server;
  private List<Consumer<StreamObserver<DownloadProfileResponse>>> orderAnswers = List.of();
  private List<Consumer<StreamObserver<WatchRequestResponse>>> watchAnswers = List.of();

  Peer() throws IOException {
    this(0, InsecureServerCredentials.create());
  }

  Peer(int listen, ServerCredentials credentials) throws IOException {
    InetSocketAddress address = new InetSocketAddress(InetAddress.getLoopbackAddress(), listen);
    server =
        NettyServerBuilder.forAddress(address, credentials)
            .addService(this)
            .intercept(new Tokens())
            .addTransportFilter(new Connections())
            .build()
            .start();
    this.port = server.getPort();
  }

  String target() {
    return "127.0.0.1:" + port;
  }

  /** Sets the answers to orders, one after the other. The last one is for all further orders. */
  @SafeVarargs
  @SuppressWarnings("varargs")
  final Peer answerOrders(Consumer<StreamObserver<DownloadProfileResponse>>... answers) {
    orderAnswers = List.of(answers);
    return this;
  }

  /** Sets the answers to watches, one after the other. The last one is for all further watches. */
  @SafeVarargs
  @SuppressWarnings("varargs")
  final Peer answerWatches(Consumer<StreamObserver<WatchRequestResponse>>... answers) {
    watchAnswers = List.of(answers);
    return this;
  }

  static Consumer<StreamObserver<DownloadProfileResponse>> accept(String requestId) {
    return call -> {
      call.onNext(DownloadProfileResponse.newBuilder().setRequestId(requestId).build());
      call.onCompleted();
    };
  }

  static <T> Consumer<StreamObserver<T>> silence() {
    return call -> {};
  }

  static <T> Consumer<StreamObserver<T>> fail(Status.Code code) {
    return call -> call.onError(code.toStatus().withDescription("from a proxy").asException());
  }

  static <T> Consumer<StreamObserver<T>> fail(
      Status.Code code, String reason, Map<String, String> metadata, Message... details) {
    return call -> call.onError(error(code, reason, metadata, details));
  }

  static Exception error(
      Status.Code code, String reason, Map<String, String> metadata, Message... details) {
    var status =
        com.google.rpc.Status.newBuilder()
            .setCode(code.value())
            .setMessage("because of " + reason)
            .addDetails(
                Any.pack(
                    ErrorInfo.newBuilder()
                        .setDomain("thingspace-gateway")
                        .setReason(reason)
                        .putAllMetadata(metadata)
                        .build()));
    for (Message detail : details) {
      status.addDetails(Any.pack(detail));
    }
    return StatusProto.toStatusException(status.build());
  }

  static RetryInfo retryAfter(int milliseconds) {
    return RetryInfo.newBuilder()
        .setRetryDelay(
            com.google.protobuf.Duration.newBuilder()
                .setSeconds(milliseconds / 1000)
                .setNanos(milliseconds % 1000 * 1_000_000))
        .build();
  }

  /** Sends messages, and does then what the last argument says. */
  static Consumer<StreamObserver<WatchRequestResponse>> send(
      List<WatchRequestResponse> messages, Consumer<StreamObserver<WatchRequestResponse>> then) {
    return call -> {
      messages.forEach(call::onNext);
      then.accept(call);
    };
  }

  static Consumer<StreamObserver<WatchRequestResponse>> end() {
    return StreamObserver::onCompleted;
  }

  static WatchRequestResponse snapshot(int revision, RequestState state, String... iccids) {
    return WatchRequestResponse.newBuilder()
        .setSnapshot(
            RequestStatus.newBuilder()
                .setRevision(revision)
                .setState(state)
                .setCounts(DeviceCounts.newBuilder().setTotal(iccids.length))
                .addAllDevices(devices(iccids)))
        .setResumeToken("token-" + revision)
        .build();
  }

  static WatchRequestResponse change(int revision, RequestState state, String... iccids) {
    return WatchRequestResponse.newBuilder()
        .setChange(
            RequestChange.newBuilder()
                .setRevision(revision)
                .setState(state)
                .addAllDevices(devices(iccids)))
        .setResumeToken("token-" + revision)
        .build();
  }

  static WatchRequestResponse heartbeat(int revision) {
    return WatchRequestResponse.newBuilder()
        .setHeartbeat(Heartbeat.newBuilder().setRevision(revision))
        .setResumeToken("token-" + revision)
        .build();
  }

  /** Returns a message as an earlier part of its revision. */
  static WatchRequestResponse part(WatchRequestResponse message) {
    return message.toBuilder().setMore(true).clearResumeToken().build();
  }

  private static List<DeviceStatus> devices(String... iccids) {
    List<DeviceStatus> devices = new ArrayList<>();
    for (String iccid : iccids) {
      devices.add(
          DeviceStatus.newBuilder()
              .setIdentifiers(DeviceIdentifiers.newBuilder().setIccid(iccid))
              .build());
    }
    return devices;
  }

  @Override
  public void downloadProfile(
      DownloadProfileRequest request, StreamObserver<DownloadProfileResponse> call) {
    next(orders, request, orderAnswers).accept(call);
  }

  @Override
  public void watchRequest(WatchRequestRequest request, StreamObserver<WatchRequestResponse> call) {
    openWatches.incrementAndGet();
    ServerCallStreamObserver<?> observer = (ServerCallStreamObserver<?>) call;
    observer.setOnCancelHandler(openWatches::decrementAndGet);
    observer.setOnCloseHandler(openWatches::decrementAndGet);
    next(watches, request, watchAnswers).accept(call);
  }

  private static <R, A> A next(List<R> requests, R request, List<A> answers) {
    synchronized (requests) {
      requests.add(request);
      return answers.get(Math.min(requests.size(), answers.size()) - 1);
    }
  }

  @Override
  public void close() {
    server.shutdownNow();
    try {
      server.awaitTermination();
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
    }
  }

  private final class Tokens implements ServerInterceptor {
    @Override
    public <Q, A> ServerCall.Listener<Q> interceptCall(
        ServerCall<Q, A> call, Metadata metadata, ServerCallHandler<Q, A> next) {
      tokens.add(String.valueOf(metadata.get(AUTHORIZATION)));
      return next.startCall(call, metadata);
    }
  }

  private final class Connections extends ServerTransportFilter {
    @Override
    public Attributes transportReady(Attributes attributes) {
      openConnections.incrementAndGet();
      var session = attributes.get(io.grpc.Grpc.TRANSPORT_ATTR_SSL_SESSION);
      if (session != null) {
        try {
          clients.add(session.getPeerPrincipal().getName());
        } catch (javax.net.ssl.SSLPeerUnverifiedException e) {
          clients.add("");
        }
      }
      return attributes;
    }

    @Override
    public void transportTerminated(Attributes attributes) {
      openConnections.decrementAndGet();
    }
  }
}
