package com.thingspace.gateway;

/**
 * A wrong field of a request.
 *
 * @param field the path of the field, such as {@code devices[0].eid}
 * @param description what is wrong with it
 */
public record Violation(String field, String description) {}
