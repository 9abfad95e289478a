package com.thingspace.gateway;

import java.util.Iterator;
import java.util.NoSuchElementException;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.Flow;
import java.util.concurrent.LinkedBlockingQueue;

/**
 * The updates of a request: a snapshot, unless the watch continues after a token, then each change
 * once and in order. {@link GatewayClient#watch} makes it.
 *
 * <pre>{@code
 * try (Watch watch = client.watch(account, requestId)) {
 *   for (Update update : watch) {
 *     System.out.println(update.state());
 *   }
 * }
 * }</pre>
 *
 * <p>The loop ends after the final state. Do not leave the loop at the final state: it ends by
 * itself then, after it has deleted the token. After a break of the connection, the watch is
 * resumed where it was. {@link Iterator#hasNext} waits for the next update, and throws a {@link
 * GatewayException} if the watch has failed, if it or its client was closed, or if the thread was
 * interrupted (which stays interrupted), and {@link java.io.UncheckedIOException} if the token
 * store fails.
 *
 * <p>While the consumer works on an update, the client buffers at most a few messages. After 30 s,
 * the gateway ends the stream of a slow consumer. The client resumes it without loss when the
 * consumer asks for the next update.
 */
public final class Watch implements Iterable<Update>, AutoCloseable {
  private final Updates updates = new Updates();
  private final WatchSubscription subscription;
  private boolean iterated;

  Watch(GatewayClient client, String account, String requestId, WatchOptions options) {
    subscription = new WatchSubscription(client, account, requestId, options, updates);
    subscription.start();
  }

  /**
   * Returns the updates. A watch has only one iterator, for one thread at a time.
   *
   * @return the iterator
   * @throws IllegalStateException if the iterator was returned before
   */
  @Override
  public Iterator<Update> iterator() {
    if (iterated) {
      throw new IllegalStateException("a watch has only one iterator");
    }
    iterated = true;
    return updates;
  }

  /**
   * Ends the watch and its call at once, from any thread. Further calls do nothing. The token of an
   * update after which no other was asked for is not saved.
   */
  @Override
  public void close() {
    subscription.end("the watch is closed", null);
  }

  /**
   * What the subscription has signalled.
   *
   * @param update null at the end
   * @param error null unless the watch has failed
   */
  private record Signal(Update update, Throwable error) {}

  private final class Updates implements Iterator<Update>, Flow.Subscriber<Update> {
    /** Has at most an update and the end. */
    private final BlockingQueue<Signal> signals = new LinkedBlockingQueue<>();

    private Signal current;

    @Override
    public void onSubscribe(Flow.Subscription subscription) {}

    @Override
    public void onNext(Update update) {
      signals.add(new Signal(update, null));
    }

    @Override
    public void onError(Throwable error) {
      signals.add(new Signal(null, error));
    }

    @Override
    public void onComplete() {
      signals.add(new Signal(null, null));
    }

    @Override
    public boolean hasNext() {
      if (current == null) {
        current = await();
      }
      if (current.error() instanceof RuntimeException error) {
        throw error;
      } else if (current.error() instanceof Error error) {
        throw error;
      }
      return current.update() != null;
    }

    @Override
    public Update next() {
      if (!hasNext()) {
        throw new NoSuchElementException();
      }
      Update update = current.update();
      current = null;
      return update;
    }

    private Signal await() {
      boolean interrupted = false;
      try {
        while (true) {
          try {
            // An interrupted thread must not write the token: Java would close the file.
            if (!interrupted && Thread.interrupted()) {
              throw new InterruptedException();
            }
            subscription.request(1);
            return signals.take();
          } catch (InterruptedException e) {
            interrupted = true;
            subscription.end("the thread was interrupted", e);
          }
        }
      } finally {
        if (interrupted) {
          Thread.currentThread().interrupt();
        }
      }
    }
  }
}
