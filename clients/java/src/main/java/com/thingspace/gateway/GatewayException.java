package com.thingspace.gateway;

/**
 * A call or a watch that has failed. Its cause is the gRPC error.
 *
 * <p>If the caller itself has ended the call, the code of the explanation is CANCELLED, and the
 * call is not safe to repeat without a decision of the caller.
 */
public class GatewayException extends RuntimeException {
  private static final long serialVersionUID = 1;

  /** The explanation of the last error. */
  private final transient Explanation explanation;

  GatewayException(Explanation explanation, Throwable cause) {
    this("", explanation, cause);
  }

  GatewayException(String introduction, Explanation explanation, Throwable cause) {
    super(introduction + describe(explanation), cause);
    this.explanation = explanation;
  }

  private static String describe(Explanation explanation) {
    String reason = explanation.reason().isEmpty() ? "" : " " + explanation.reason();
    return explanation.code() + reason + ": " + explanation.message();
  }

  /**
   * Returns what the error means and what to do about it.
   *
   * @return the explanation
   */
  public final Explanation explanation() {
    return explanation;
  }
}
