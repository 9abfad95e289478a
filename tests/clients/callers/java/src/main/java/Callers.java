import com.google.gson.Gson;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.ErrorInfo;
import com.thingspace.esim.v1.DeviceCounts;
import com.thingspace.esim.v1.EsimServiceGrpc;
import com.thingspace.esim.v1.GetRequestStatusRequest;
import com.thingspace.esim.v1.WatchRequestRequest;
import com.thingspace.esim.v1.WatchRequestResponse;
import io.grpc.ChannelCredentials;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;

/**
 * Callers for the tests: they repeat status calls and watch one request until it is final, as docs/clients.md says.
 *
 * <p>Arguments: target, account, request id, number of watches. The environment has the files of the service config, the
 * authority, the certificate and its key, and the token. Prints its counts as a line of JSON, ten times a second.
 */
final class Callers {
  private static final int LOOPS = 2;
  private static final Set<Status.Code> FROM_THE_NETWORK =
      Set.of(Status.Code.CANCELLED, Status.Code.UNKNOWN, Status.Code.INTERNAL, Status.Code.DEADLINE_EXCEEDED);

  private final EsimServiceGrpc.EsimServiceBlockingStub stub;
  private final String account;
  private final String requestId;

  private int calls;
  private int opened;
  private int ended;
  private final List<String> failed = new ArrayList<>();

  private Callers(String target, String account, String requestId) throws IOException {
    Path config = Path.of(System.getenv("CALLER_SERVICE_CONFIG"));
    // Gson reads numbers as Double, as gRPC wants them.
    @SuppressWarnings("unchecked")
    Map<String, ?> serviceConfig = new Gson().fromJson(Files.readString(config), Map.class);
    ManagedChannel channel =
        Grpc.newChannelBuilder(target, credentials())
            .defaultServiceConfig(serviceConfig)
            .enableRetry()
            .keepAliveTime(1, TimeUnit.MINUTES)
            .keepAliveTimeout(20, TimeUnit.SECONDS)
            .build();
    Metadata metadata = new Metadata();
    if (!environment("TOKEN").isEmpty()) {
      Metadata.Key<String> key = Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);
      metadata.put(key, "Bearer " + environment("TOKEN"));
    }
    this.stub =
        EsimServiceGrpc.newBlockingStub(channel).withInterceptors(MetadataUtils.newAttachHeadersInterceptor(metadata));
    this.account = account;
    this.requestId = requestId;
  }

  private static String environment(String name) {
    return System.getenv().getOrDefault("CALLER_" + name, "");
  }

  private static ChannelCredentials credentials() throws IOException {
    if (environment("CA").isEmpty()) {
      return InsecureChannelCredentials.create();
    }
    TlsChannelCredentials.Builder credentials =
        TlsChannelCredentials.newBuilder().trustManager(new File(environment("CA")));
    if (!environment("CERT").isEmpty()) {
      credentials.keyManager(new File(environment("CERT")), new File(environment("KEY")));
    }
    return credentials.build();
  }

  private synchronized void print() {
    Map<String, ?> counts = Map.of("Calls", calls, "Opened", opened, "Final", ended, "Failed", failed);
    System.out.println(new Gson().toJson(counts));
  }

  private synchronized void called(Throwable failure) {
    calls += 1;
    if (failure != null) {
      failed.add(failure.toString());
    }
  }

  private void repeatCalls() throws InterruptedException {
    GetRequestStatusRequest request =
        GetRequestStatusRequest.newBuilder().setAccountName(account).setRequestId(requestId).build();
    while (true) {
      try {
        stub.withDeadlineAfter(30, TimeUnit.SECONDS).getRequestStatus(request);
        called(null);
      } catch (StatusRuntimeException failure) {
        called(failure);
      }
      Thread.sleep(10);
    }
  }

  private void watch() throws InterruptedException {
    WatchRequestRequest.Builder request =
        WatchRequestRequest.newBuilder().setAccountName(account).setRequestId(requestId);
    WatchRequestResponse last = null;
    for (long pause = 500; ; pause = Math.min(2 * pause, 30_000)) {
      synchronized (this) {
        opened += 1;
      }
      try {
        var messages = stub.watchRequest(request.build());
        while (messages.hasNext()) {
          WatchRequestResponse message = messages.next();
          pause = 500;
          if (!message.getMore()) {
            request.setResumeToken(message.getResumeToken());
            last = message;
          }
        }
        synchronized (this) {
          ended += devices(last).getPending() == 0 ? 1 : 0;
        }
        return;
      } catch (StatusRuntimeException failure) {
        Status.Code code = failure.getStatus().getCode();
        boolean network = FROM_THE_NETWORK.contains(code) && !isFromTheGateway(failure);
        if (code != Status.Code.UNAVAILABLE && !network) {
          synchronized (this) {
            failed.add(failure.toString());
          }
          return;
        }
      }
      Thread.sleep(ThreadLocalRandom.current().nextLong(pause));
    }
  }

  private static DeviceCounts devices(WatchRequestResponse message) {
    return switch (message.getEventCase()) {
      case SNAPSHOT -> message.getSnapshot().getCounts();
      case CHANGE -> message.getChange().getCounts();
      default -> message.getHeartbeat().getCounts();
    };
  }

  private static boolean isFromTheGateway(StatusRuntimeException failure) {
    com.google.rpc.Status status = StatusProto.fromThrowable(failure);
    return status.getDetailsList().stream()
        .filter(detail -> detail.is(ErrorInfo.class))
        .anyMatch(
            detail -> {
              try {
                return detail.unpack(ErrorInfo.class).getDomain().equals("thingspace-gateway");
              } catch (InvalidProtocolBufferException unreadable) {
                return false;
              }
            });
  }

  private interface Task {
    void run() throws InterruptedException;
  }

  private static Thread start(Task task) {
    Thread thread =
        new Thread(
            () -> {
              try {
                task.run();
              } catch (InterruptedException ignored) {
                Thread.currentThread().interrupt();
              }
            });
    thread.start();
    return thread;
  }

  private void printCounts() throws InterruptedException {
    while (true) {
      print();
      Thread.sleep(100);
    }
  }

  public static void main(String[] arguments) throws Exception {
    Callers callers = new Callers(arguments[0], arguments[1], arguments[2]);
    start(callers::printCounts);
    for (int loop = 0; loop < LOOPS; loop++) {
      start(callers::repeatCalls);
    }
    List<Thread> watches = new ArrayList<>();
    for (int watch = 0; watch < Integer.parseInt(arguments[3]); watch++) {
      watches.add(start(callers::watch));
    }
    for (Thread watch : watches) {
      watch.join();
    }
    callers.print();
    System.exit(0);
  }
}
