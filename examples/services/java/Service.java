import com.thingspace.esim.v1.DeviceIdentifiers;
import com.thingspace.gateway.Credentials;
import com.thingspace.gateway.FileTokenStore;
import com.thingspace.gateway.GatewayClient;
import com.thingspace.gateway.GatewayException;
import com.thingspace.gateway.UnknownOutcomeException;
import com.thingspace.gateway.Update;
import com.thingspace.gateway.Watch;
import com.thingspace.gateway.WatchOptions;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.Reader;
import java.io.UncheckedIOException;
import java.io.Writer;
import java.nio.file.DirectoryStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.List;
import java.util.Properties;
import java.util.UUID;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;

/**
 * An example of a service that orders an eSIM profile for each device that is provisioned.
 *
 * <p>It reads a line "EID ICCID" for each device from its standard input, and prints what happens to
 * the device. It keeps a file for each device in a folder, so that it continues after a restart. It
 * ends when its input has ended and each device has a result.
 *
 * <p>Usage: Service TARGET ACCOUNT FOLDER
 */
public final class Service {
  /** How long to wait before an order is tried again whose outcome is not known. */
  private static final int PAUSE_SECONDS = 10;

  private final GatewayClient client;
  private final String account;
  private final Path folder;
  private final WatchOptions options;
  private final ExecutorService threads = Executors.newCachedThreadPool();

  private Service(GatewayClient client, String account, Path folder) {
    this.client = client;
    this.account = account;
    this.folder = folder;
    this.options =
        WatchOptions.DEFAULT.withTokenStore(new FileTokenStore(folder.resolve("tokens")));
  }

  public static void main(String[] arguments) throws IOException, InterruptedException {
    try (GatewayClient client = GatewayClient.connect(arguments[0], Credentials.insecure())) {
      new Service(client, arguments[1], Path.of(arguments[2])).run();
    }
  }

  private void run() throws IOException, InterruptedException {
    try (DirectoryStream<Path> files = Files.newDirectoryStream(folder, "*.properties")) {
      for (Path file : files) {
        start(file, load(file));
      }
    }
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
    for (String line = lines.readLine(); line != null; line = lines.readLine()) {
      String[] identifiers = line.split(" ");
      provision(identifiers[0], identifiers[1]);
    }
    threads.shutdown();
    threads.awaitTermination(Long.MAX_VALUE, TimeUnit.NANOSECONDS);
  }

  /** Stores a new device and its key. The key is stored before the first call. */
  private void provision(String eid, String iccid) {
    Path file = folder.resolve(Path.of(iccid).getFileName() + ".properties");
    if (Files.exists(file)) {
      return;
    }
    Properties device = new Properties();
    device.setProperty("eid", eid);
    device.setProperty("iccid", iccid);
    device.setProperty("key", UUID.randomUUID().toString());
    store(file, device);
    start(file, device);
  }

  private void start(Path file, Properties device) {
    if (device.getProperty("result") == null) {
      threads.execute(() -> follow(file, device));
    }
  }

  /** Orders a profile, unless that is done, and follows the request until it is final. */
  private void follow(Path file, Properties device) {
    String iccid = device.getProperty("iccid");
    String result = "";
    try {
      if (device.getProperty("requestId") == null) {
        device.setProperty("requestId", order(device));
        store(file, device);
        System.out.println(iccid + " ordered");
      }
      try (Watch watch = client.watch(account, device.getProperty("requestId"), options)) {
        for (Update update : watch) {
          result = update.state().name().replace("REQUEST_STATE_", "");
          System.out.println(iccid + " " + result);
        }
      }
    } catch (GatewayException e) {
      result = "failed: " + e.getMessage();
    }
    device.setProperty("result", result);
    store(file, device);
    System.out.println(iccid + " done: " + result);
  }

  /** Orders a profile, always with the same key, until the outcome is known. */
  private String order(Properties device) {
    DeviceIdentifiers identifiers =
        DeviceIdentifiers.newBuilder()
            .setEid(device.getProperty("eid"))
            .setIccid(device.getProperty("iccid"))
            .build();
    while (true) {
      try {
        return client.order(account, List.of(identifiers), device.getProperty("key")).requestId();
      } catch (GatewayException e) {
        if (!(e instanceof UnknownOutcomeException) && !e.explanation().safeToRepeat()) {
          throw e;
        }
        System.out.println(device.getProperty("iccid") + " is tried again: " + e.getMessage());
        pause();
      }
    }
  }

  private static void pause() {
    try {
      TimeUnit.SECONDS.sleep(PAUSE_SECONDS);
    } catch (InterruptedException e) {
      throw new IllegalStateException(e);
    }
  }

  private static Properties load(Path file) throws IOException {
    Properties device = new Properties();
    try (Reader reader = Files.newBufferedReader(file)) {
      device.load(reader);
    }
    return device;
  }

  /** Replaces the file of a device in one step. */
  private static void store(Path file, Properties device) {
    Path written = file.resolveSibling(file.getFileName() + ".new");
    try {
      try (Writer writer = Files.newBufferedWriter(written)) {
        device.store(writer, null);
      }
      Files.move(written, file, StandardCopyOption.ATOMIC_MOVE, StandardCopyOption.REPLACE_EXISTING);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }
}
