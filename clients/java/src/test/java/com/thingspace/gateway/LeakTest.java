package com.thingspace.gateway;

import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;

import com.thingspace.esim.v1.RequestState;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.parallel.Isolated;

/** What a closed client leaves. It counts threads, so no other test runs at the same time. */
@Isolated
class LeakTest {
  @Test
  void aClosedClientLeavesNoThreadsAndConnections() throws Exception {
    try (Peer peer = new Peer()) {
      peer.answerOrders(Peer.accept("request"));
      peer.answerWatches(
          Peer.send(
              List.of(Peer.snapshot(1, RequestState.REQUEST_STATE_PENDING, "a")), Peer.silence()));
      GatewayClient client = GatewayClient.connect(peer.target(), Credentials.insecure());
      client.order("account", List.of(), "key");
      try (Watch watch = client.watch("account", "request")) {
        watch.iterator().next();
      }
      // Nobody closes this watch.
      var updates = client.watch("account", "request").iterator();
      updates.next();
      client.close();
      assertThrows(GatewayException.class, updates::hasNext);
      Await.until("no connections", () -> peer.openConnections.get() == 0);
      Await.until("no threads", () -> !hasThreads());
      assertFalse(hasThreads());
    }
  }

  private static boolean hasThreads() {
    return Thread.getAllStackTraces().keySet().stream()
        .anyMatch(thread -> thread.getName().startsWith("thingspace-gateway"));
  }
}
