package com.thingspace.gateway;

import io.grpc.ManagedChannel;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CancellationException;
import java.util.function.Supplier;

/** The connections for watches. Each carries a limited number of watches. */
final class WatchChannels {
  /**
   * The gateway and proxies limit the streams of a connection. A call above the limit waits without
   * an error.
   */
  private static final int MAX_WATCHES = 100;

  private final Supplier<ManagedChannel> open;
  private final List<Slot> slots = new ArrayList<>();
  private boolean closed;

  WatchChannels(Supplier<ManagedChannel> open) {
    this.open = open;
  }

  /** Returns a connection with room for a watch. The caller must release it. */
  synchronized Slot acquire() {
    if (closed) {
      throw new CancellationException("the client is closed");
    }
    for (Slot slot : slots) {
      if (slot.watches < MAX_WATCHES) {
        slot.watches++;
        return slot;
      }
    }
    Slot slot = new Slot(open.get());
    slots.add(slot);
    return slot;
  }

  /** Ends the use of a connection, and closes it if it is not used and not the only one. */
  synchronized void release(Slot slot) {
    slot.watches--;
    if (slot.watches == 0 && slots.size() > 1) {
      slots.remove(slot);
      slot.channel.shutdown();
    }
  }

  synchronized void close() {
    closed = true;
    slots.forEach(slot -> slot.channel.shutdownNow());
    slots.clear();
  }

  /** A connection. */
  static final class Slot {
    private final ManagedChannel channel;
    private int watches = 1;

    private Slot(ManagedChannel channel) {
      this.channel = channel;
    }

    ManagedChannel channel() {
      return channel;
    }
  }
}
