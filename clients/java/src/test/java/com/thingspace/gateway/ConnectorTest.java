package com.thingspace.gateway;

import static org.junit.jupiter.api.Assertions.assertFalse;

import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.Test;

/** How connections are opened. */
class ConnectorTest {
  /** With gRPC's own pauses, 10 attempts take more than 100 s. */
  @Test
  void attemptsToConnectDoNotBecomeRare() throws Exception {
    AtomicInteger attempts = new AtomicInteger();
    try (ServerSocket broken = new ServerSocket(0, 50, InetAddress.getLoopbackAddress());
        GatewayClient client =
            GatewayClient.connect("127.0.0.1:" + broken.getLocalPort(), Credentials.insecure())) {
      Thread refuse = new Thread(() -> refuse(broken, attempts));
      refuse.setDaemon(true);
      refuse.start();
      CompletableFuture<Ordered> order =
          CompletableFuture.supplyAsync(() -> client.order("account", List.of(), "key"));
      Await.until("10 attempts", () -> attempts.get() >= 10);
      assertFalse(order.isDone(), "the order waits for a connection");
    }
  }

  private static void refuse(ServerSocket broken, AtomicInteger attempts) {
    try {
      while (true) {
        broken.accept().close();
        attempts.incrementAndGet();
      }
    } catch (IOException e) {
      // The test has ended.
      return;
    }
  }
}
