package com.thingspace.gateway;

import java.time.Duration;
import java.util.Objects;

/** The optional settings of {@link GatewayClient#order}. Immutable. */
public final class OrderOptions {
  /** No service plan, and a timeout of 5 minutes. */
  public static final OrderOptions DEFAULT = new OrderOptions("", Duration.ofMinutes(5));

  private final String servicePlan;
  private final Duration timeout;

  private OrderOptions(String servicePlan, Duration timeout) {
    this.servicePlan = servicePlan;
    this.timeout = timeout;
  }

  /**
   * Returns options with a service plan of the account.
   *
   * @param servicePlan the plan
   * @return the options
   */
  public OrderOptions withServicePlan(String servicePlan) {
    return new OrderOptions(Objects.requireNonNull(servicePlan), timeout);
  }

  /**
   * Returns options with a time after which the order is not repeated any more. A shorter deadline
   * of the current {@link io.grpc.Context} has precedence.
   *
   * @param timeout the time, more than zero
   * @return the options
   */
  public OrderOptions withTimeout(Duration timeout) {
    return new OrderOptions(servicePlan, Durations.requirePositive(timeout, "timeout"));
  }

  String servicePlan() {
    return servicePlan;
  }

  Duration timeout() {
    return timeout;
  }
}
