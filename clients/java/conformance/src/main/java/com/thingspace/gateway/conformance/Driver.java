package com.thingspace.gateway.conformance;

import static java.nio.charset.StandardCharsets.UTF_8;

import com.google.gson.FieldNamingPolicy;
import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.annotations.SerializedName;
import com.thingspace.esim.v1.DeviceIdentifiers;
import com.thingspace.gateway.Credentials;
import com.thingspace.gateway.Explanation;
import com.thingspace.gateway.FileTokenStore;
import com.thingspace.gateway.GatewayClient;
import com.thingspace.gateway.OrderOptions;
import com.thingspace.gateway.Ordered;
import com.thingspace.gateway.UnknownOutcomeException;
import com.thingspace.gateway.Update;
import com.thingspace.gateway.Violation;
import com.thingspace.gateway.Watch;
import com.thingspace.gateway.WatchOptions;
import io.grpc.Status;
import java.io.BufferedReader;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.ConcurrentHashMap;
import java.util.logging.Handler;
import java.util.logging.Level;
import java.util.logging.Logger;

/**
 * The driver of the conformance tests for the Java client: it reads commands as lines of JSON, and
 * prints events as lines of JSON.
 */
final class Driver {
  private static final Gson GSON =
      new GsonBuilder()
          .serializeNulls()
          .setFieldNamingPolicy(FieldNamingPolicy.LOWER_CASE_WITH_UNDERSCORES)
          .create();

  private static final class Config {
    String target;
    boolean plaintext;
    String caFile;
    String certFile;
    String keyFile;
    String tokenFile;
    double idleTimeoutSeconds;
  }

  private record Device(String eid, String iccid, String imei) {}

  private static final class Command {
    @SerializedName("do")
    String action;

    String id;
    String account;
    String key;
    List<Device> devices;
    String servicePlan;
    double timeoutSeconds;
    String requestId;
    String token;
    String tokenFolder;
    long pauseMs;
    int stopAfter;
  }

  private interface Task {
    Map<String, Object> run(Command command) throws Exception;
  }

  private final PrintStream output =
      new PrintStream(new FileOutputStream(FileDescriptor.out), true, UTF_8);
  private final Config config;
  private final GatewayClient client;
  private final Map<String, Thread> running = new ConcurrentHashMap<>();

  private Driver(Config config) throws IOException {
    this.config = config;
    this.client = GatewayClient.connect(config.target, credentials(config));
  }

  private static Credentials credentials(Config config) {
    Credentials credentials = Credentials.insecure();
    if (!config.plaintext) {
      credentials =
          config.caFile == null ? Credentials.tls() : Credentials.tls(Path.of(config.caFile));
    }
    if (config.certFile != null) {
      credentials = credentials.withCertificate(Path.of(config.certFile), Path.of(config.keyFile));
    }
    return config.tokenFile == null
        ? credentials
        : credentials.withTokenFile(Path.of(config.tokenFile));
  }

  /**
   * Runs the driver.
   *
   * @param arguments the file with the configuration
   */
  public static void main(String[] arguments) throws Exception {
    // A logger that nothing refers to would lose its level.
    Logger logger = Logger.getLogger(GatewayClient.class.getPackageName());
    logger.setLevel(Level.FINE);
    for (Handler handler : Logger.getLogger("").getHandlers()) {
      handler.setLevel(Level.FINE);
    }
    String text = Files.readString(Path.of(arguments[0]));
    new Driver(GSON.fromJson(text, Config.class)).run();
    logger.fine("the end");
  }

  private void run() throws Exception {
    print(event("event", "ready"));
    BufferedReader input = new BufferedReader(new InputStreamReader(System.in, UTF_8));
    for (String line = input.readLine(); line != null; line = input.readLine()) {
      Command command = GSON.fromJson(line, Command.class);
      if (command.action.equals("close")) {
        break;
      }
      execute(command);
    }
    client.close();
    for (Thread thread : running.values()) {
      thread.join();
    }
    print(event("event", "closed"));
  }

  private synchronized void print(Map<String, Object> event) {
    output.println(GSON.toJson(event));
  }

  private static Map<String, Object> event(Object... pairs) {
    Map<String, Object> event = new LinkedHashMap<>();
    for (int i = 0; i < pairs.length; i += 2) {
      event.put((String) pairs[i], pairs[i + 1]);
    }
    return event;
  }

  private void execute(Command command) {
    switch (command.action) {
      case "order" -> start(command, this::order);
      case "watch" -> start(command, this::watch);
      case "cancel" -> Optional.ofNullable(running.get(command.id)).ifPresent(Thread::interrupt);
      case "resources" ->
          print(event("event", "resources", "count", Thread.activeCount(), "what", "threads"));
      default -> throw new IllegalArgumentException("unknown command: " + command.action);
    }
  }

  private void start(Command command, Task task) {
    Thread thread =
        new Thread(
            () -> {
              Map<String, Object> last;
              try {
                last = task.run(command);
              } catch (Exception e) {
                last = failed(e);
              }
              last.put("id", command.id);
              running.remove(command.id);
              print(last);
            },
            command.id);
    running.put(command.id, thread);
    thread.start();
  }

  private Map<String, Object> order(Command command) {
    OrderOptions options = OrderOptions.DEFAULT;
    if (command.servicePlan != null) {
      options = options.withServicePlan(command.servicePlan);
    }
    if (command.timeoutSeconds > 0) {
      options = options.withTimeout(seconds(command.timeoutSeconds));
    }
    List<DeviceIdentifiers> devices = new ArrayList<>();
    for (Device device : command.devices) {
      var identifiers =
          DeviceIdentifiers.newBuilder().setEid(device.eid()).setIccid(device.iccid());
      if (device.imei() != null) {
        identifiers.setImei(device.imei());
      }
      devices.add(identifiers.build());
    }
    Ordered ordered = client.order(command.account, devices, command.key, options);
    return event(
        "event", "ordered", "request_id", ordered.requestId(), "replayed", ordered.replayed());
  }

  private Map<String, Object> watch(Command command) throws InterruptedException {
    WatchOptions options = WatchOptions.DEFAULT;
    if (command.token != null) {
      options = options.withToken(command.token);
    }
    if (command.tokenFolder != null) {
      options = options.withTokenStore(new FileTokenStore(Path.of(command.tokenFolder)));
    }
    if (config.idleTimeoutSeconds > 0) {
      options = options.withIdleTimeout(seconds(config.idleTimeoutSeconds));
    }
    int printed = 0;
    try (Watch watch = client.watch(command.account, command.requestId, options)) {
      for (Update update : watch) {
        print(updated(command.id, update));
        printed++;
        if (printed == command.stopAfter) {
          return event("event", "stopped");
        }
        Thread.sleep(command.pauseMs);
      }
    }
    return event("event", "end");
  }

  private static Duration seconds(double number) {
    return Duration.ofNanos((long) (number * 1e9));
  }

  private static Map<String, Object> updated(String id, Update update) {
    var counts = update.counts();
    return event(
        "id",
        id,
        "event",
        update instanceof Update.Snapshot ? "snapshot" : "change",
        "state",
        update.state().name().replaceFirst("^REQUEST_STATE_", ""),
        "revision",
        update.revision(),
        "counts",
        event(
            "total",
            counts.getTotal(),
            "pending",
            counts.getPending(),
            "succeeded",
            counts.getSucceeded(),
            "failed",
            counts.getFailed()),
        "devices",
        update.devices().stream()
            .map(
                device ->
                    event(
                        "iccid",
                        device.getIdentifiers().getIccid(),
                        "state",
                        device.getState().name().replaceFirst("^DEVICE_STATE_", ""),
                        "fault",
                        device.getFault().getCode()))
            .toList(),
        "token",
        update.token());
  }

  private static Map<String, Object> failed(Exception error) {
    Explanation explanation = GatewayClient.explain(error);
    if (error instanceof InterruptedException
        || explanation.code() == Status.Code.CANCELLED && !explanation.safeToRepeat()) {
      return event("event", "cancelled");
    }
    if (explanation.message().isEmpty() || explanation.code() == Status.Code.UNKNOWN) {
      error.printStackTrace();
    }
    UnknownOutcomeException unknown = error instanceof UnknownOutcomeException e ? e : null;
    List<Map<String, Object>> violations = new ArrayList<>();
    for (Violation one : explanation.violations()) {
      violations.add(event("field", one.field(), "description", one.description()));
    }
    return event(
        "event",
        "error",
        "kind",
        unknown == null ? "gateway" : "unknown_outcome",
        "code",
        explanation.code().name(),
        "reason",
        explanation.reason(),
        "message",
        explanation.message(),
        "violations",
        violations,
        "retry_delay_seconds",
        explanation.retryDelay().map(delay -> delay.toNanos() / 1e9).orElse(null),
        "safe_to_repeat",
        explanation.safeToRepeat(),
        "metadata",
        explanation.metadata(),
        "order_id",
        unknown == null ? null : unknown.orderId().orElse(null),
        "request_id",
        unknown == null ? null : unknown.requestId().orElse(null));
  }
}
