package com.thingspace.gateway;

import static java.nio.charset.StandardCharsets.UTF_8;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/** A real gateway with a simulated ThingSpace. */
final class Dev implements AutoCloseable {
  static final String ACCOUNT = "0000123456-00001";
  private static final Pattern ADDRESS = Pattern.compile("gRPC +(\\S+)");

  final String target;
  private final Process process;

  Dev() throws IOException {
    process =
        new ProcessBuilder(System.getProperty("gateway.binary"), "dev", "--listen", "127.0.0.1:0")
            .redirectErrorStream(true)
            .start();
    BufferedReader output =
        new BufferedReader(new InputStreamReader(process.getInputStream(), UTF_8));
    target = readTarget(output);
    // The process must not wait for a reader.
    Thread drain = new Thread(() -> drain(output));
    drain.setDaemon(true);
    drain.start();
  }

  private static String readTarget(BufferedReader output) throws IOException {
    StringBuilder text = new StringBuilder();
    for (String line = output.readLine(); line != null; line = output.readLine()) {
      Matcher matcher = ADDRESS.matcher(line);
      if (matcher.matches()) {
        return matcher.group(1);
      }
      text.append(line).append('\n');
    }
    throw new IOException("the gateway has not started:\n" + text);
  }

  private static void drain(BufferedReader output) {
    try {
      while (output.readLine() != null) {}
    } catch (IOException e) {
      // The process has ended.
      return;
    }
  }

  @Override
  public void close() {
    process.destroy();
    process.onExit().join();
  }
}
