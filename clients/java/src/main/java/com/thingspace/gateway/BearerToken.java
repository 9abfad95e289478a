package com.thingspace.gateway;

import io.grpc.CallCredentials;
import io.grpc.Metadata;
import io.grpc.Status;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.Executor;

/** Sends the token in a file with each call. Its errors do not contain the token. */
final class BearerToken extends CallCredentials {
  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

  private final Path file;

  BearerToken(Path file) {
    this.file = file;
  }

  @Override
  public void applyRequestMetadata(
      RequestInfo request, Executor executor, MetadataApplier applier) {
    executor.execute(
        () -> {
          try {
            Metadata metadata = new Metadata();
            metadata.put(AUTHORIZATION, "Bearer " + read());
            applier.apply(metadata);
          } catch (IOException e) {
            applier.fail(Status.UNAUTHENTICATED.withDescription(e.getMessage()).withCause(e));
          }
        });
  }

  private String read() throws IOException {
    String token;
    try {
      token = Files.readString(file).strip();
    } catch (IOException e) {
      // The message of a missing file is only its name.
      throw new IOException("cannot read the token file " + file, e);
    }
    if (token.isEmpty()) {
      throw new IOException("the token file " + file + " is empty");
    }
    if (!token.chars().allMatch(c -> c > ' ' && c <= '~')) {
      throw new IOException("the token file " + file + " contains something that is no token");
    }
    return token;
  }
}
