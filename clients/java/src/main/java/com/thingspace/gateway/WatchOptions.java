package com.thingspace.gateway;

import java.time.Duration;
import java.util.Objects;
import java.util.Optional;

/** The optional settings of {@link GatewayClient#watch}. Immutable. */
public final class WatchOptions {
  /** No token, no store, and an idle timeout of a minute. */
  public static final WatchOptions DEFAULT =
      new WatchOptions("", new NoTokens(), Duration.ofMinutes(1));

  private final String token;
  private final TokenStore tokenStore;
  private final Duration idleTimeout;

  private WatchOptions(String token, TokenStore tokenStore, Duration idleTimeout) {
    this.token = token;
    this.tokenStore = tokenStore;
    this.idleTimeout = idleTimeout;
  }

  /**
   * Returns options with which a watch continues after the update that had a token. Without a
   * token, the store has it, or the watch begins with a snapshot.
   *
   * @param token the token of an {@link Update}; empty for none
   * @return the options
   */
  public WatchOptions withToken(String token) {
    return new WatchOptions(Objects.requireNonNull(token), tokenStore, idleTimeout);
  }

  /**
   * Returns options with a store for the token of the last processed update. An update is processed
   * when the consumer asks for the next one: only then its token is saved. If the process ends
   * before that, the update comes again in the next watch with the store (at least once). The token
   * is deleted after the final update was processed.
   *
   * @param tokenStore the store
   * @return the options
   */
  public WatchOptions withTokenStore(TokenStore tokenStore) {
    return new WatchOptions(token, Objects.requireNonNull(tokenStore), idleTimeout);
  }

  /**
   * Returns options with a time without a message, also without a heartbeat, after which a stream
   * is opened again. It must be longer than the gateway's heartbeat (25 s).
   *
   * @param idleTimeout the time, more than zero
   * @return the options
   */
  public WatchOptions withIdleTimeout(Duration idleTimeout) {
    Durations.requirePositive(idleTimeout, "idleTimeout");
    return new WatchOptions(token, tokenStore, idleTimeout);
  }

  String token() {
    return token;
  }

  TokenStore tokenStore() {
    return tokenStore;
  }

  Duration idleTimeout() {
    return idleTimeout;
  }

  /** A store that keeps nothing. */
  private static final class NoTokens implements TokenStore {
    @Override
    public Optional<String> load(String account, String requestId) {
      return Optional.empty();
    }

    @Override
    public void save(String account, String requestId, String token) {}

    @Override
    public void delete(String account, String requestId) {}
  }
}
