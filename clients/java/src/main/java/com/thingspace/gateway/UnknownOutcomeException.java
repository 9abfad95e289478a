package com.thingspace.gateway;

import java.util.Optional;

/**
 * An order that may or may not be placed. Order it again with the same key: that never places a
 * second order, and returns the outcome when it is known. A new key may place a second one.
 *
 * <p>The explanation and the cause are those of the last error. The message does not contain the
 * key.
 */
public final class UnknownOutcomeException extends GatewayException {
  private static final long serialVersionUID = 1;

  /** The account of the order. */
  private final String account;

  /** The key of the order. */
  private final String idempotencyKey;

  /** The name of the order for the operator, or empty. */
  private final String orderId;

  /** The id of the request, or empty. */
  private final String requestId;

  UnknownOutcomeException(
      String account,
      String idempotencyKey,
      String orderId,
      String requestId,
      GatewayException last) {
    super(
        "the order may or may not be placed; call again with the same key: ",
        last.explanation(),
        last);
    this.account = account;
    this.idempotencyKey = idempotencyKey;
    this.orderId = orderId;
    this.requestId = requestId;
  }

  /**
   * Returns the account of the order.
   *
   * @return the ThingSpace billing account
   */
  public String account() {
    return account;
  }

  /**
   * Returns the key with which the order can be repeated.
   *
   * @return the idempotency key
   */
  public String idempotencyKey() {
    return idempotencyKey;
  }

  /**
   * Returns the name of the order for the gateway's operator, if the gateway has told it.
   *
   * @return the id of the order
   */
  public Optional<String> orderId() {
    return Optional.of(orderId).filter(id -> !id.isEmpty());
  }

  /**
   * Returns ThingSpace's id of the request, if ThingSpace has accepted the order and the gateway
   * cannot store that yet. Usually it is empty.
   *
   * @return the id of the request
   */
  public Optional<String> requestId() {
    return Optional.of(requestId).filter(id -> !id.isEmpty());
  }
}
