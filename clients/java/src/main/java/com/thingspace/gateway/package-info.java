/**
 * Calls a thingspace-gateway, which orders eSIM profile downloads through Verizon's ThingSpace.
 *
 * <p>{@link com.thingspace.gateway.GatewayClient#connect} returns a client. {@link
 * com.thingspace.gateway.GatewayClient#order} places an order and repeats the call until the
 * outcome is known. {@link com.thingspace.gateway.GatewayClient#watch} returns each change of a
 * request, over all breaks of the connection. {@link com.thingspace.gateway.GatewayClient#explain}
 * says what an error means. {@link com.thingspace.gateway.GatewayClient#stub} has the plain calls
 * of the API, such as GetRequestStatus.
 *
 * <p>The package logs to the {@link java.lang.System.Logger} {@code com.thingspace.gateway}: a line
 * at level INFO for each repeated order, and at level DEBUG for each resumed watch. The lines
 * contain no tokens and no identities of devices.
 */
package com.thingspace.gateway;
