package com.thingspace.gateway;

/**
 * An order that ThingSpace has accepted.
 *
 * @param requestId ThingSpace's id of the request, for {@link GatewayClient#watch}
 * @param replayed whether an earlier call with the same key had already placed the order
 */
public record Ordered(String requestId, boolean replayed) {}
