package com.thingspace.gateway;

import java.io.IOException;
import java.util.Optional;

/**
 * Keeps the resume token of each watched request, so that a later process continues the watch: see
 * {@link WatchOptions#withTokenStore}. Several watches may use a store at the same time.
 */
public interface TokenStore {
  /**
   * Returns the token of a request, if there is one.
   *
   * @param account the ThingSpace billing account
   * @param requestId the id of the request
   * @return the token
   * @throws IOException if the store fails
   */
  Optional<String> load(String account, String requestId) throws IOException;

  /**
   * Stores the token of a request in place of an earlier one. When it returns, the token is
   * durable.
   *
   * @param account the ThingSpace billing account
   * @param requestId the id of the request
   * @param token the token
   * @throws IOException if the store fails
   */
  void save(String account, String requestId, String token) throws IOException;

  /**
   * Deletes the token of a request, if there is one.
   *
   * @param account the ThingSpace billing account
   * @param requestId the id of the request
   * @throws IOException if the store fails
   */
  void delete(String account, String requestId) throws IOException;
}
