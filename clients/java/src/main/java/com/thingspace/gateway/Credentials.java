package com.thingspace.gateway;

import io.grpc.CallCredentials;
import io.grpc.ChannelCredentials;
import io.grpc.InsecureChannelCredentials;
import io.grpc.TlsChannelCredentials;
import io.grpc.util.AdvancedTlsX509KeyManager;
import java.io.File;
import java.io.IOException;
import java.nio.file.Path;
import java.security.GeneralSecurityException;
import java.util.Objects;
import java.util.Optional;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.regex.Pattern;

/**
 * Says how a client proves who it is, and how it verifies the gateway. It contains names of files,
 * and no secrets. Immutable.
 */
public final class Credentials {
  private static final long KEY_CHECK_SECONDS = 2;

  /** A target on this machine, without names that a name server resolves. */
  private static final Pattern LOOPBACK =
      Pattern.compile("unix:.*|(dns:///|dns:)?(localhost|127(\\.\\d{1,3}){3}|\\[::1])(:\\d+)?");

  private final boolean tls;
  private final Path caFile;
  private final Path certificateFile;
  private final Path keyFile;
  private final Path tokenFile;
  private final boolean tokenOverPlaintext;

  private Credentials(
      boolean tls,
      Path caFile,
      Path certificateFile,
      Path keyFile,
      Path tokenFile,
      boolean tokenOverPlaintext) {
    this.tls = tls;
    this.caFile = caFile;
    this.certificateFile = certificateFile;
    this.keyFile = keyFile;
    this.tokenFile = tokenFile;
    this.tokenOverPlaintext = tokenOverPlaintext;
  }

  /**
   * Returns credentials for a connection without TLS: on this machine, or through a service mesh
   * that encrypts it.
   *
   * @return the credentials
   */
  public static Credentials insecure() {
    return new Credentials(false, null, null, null, null, false);
  }

  /**
   * Returns credentials for a connection with TLS 1.2 or later, which verify the gateway's
   * certificate with the authorities of the Java platform.
   *
   * @return the credentials
   */
  public static Credentials tls() {
    return new Credentials(true, null, null, null, null, false);
  }

  /**
   * Returns credentials for a connection with TLS 1.2 or later.
   *
   * @param caFile the certificates of the authorities that the gateway's certificate is verified
   *     with, in PEM format; {@link GatewayClient#connect} reads it once
   * @return the credentials
   */
  public static Credentials tls(Path caFile) {
    return new Credentials(true, Objects.requireNonNull(caFile), null, null, null, false);
  }

  /**
   * Returns credentials with a client certificate. Both files are read again within 2 s after both
   * have changed, and used for new connections.
   *
   * @param certificateFile the client certificate in PEM format
   * @param keyFile its private key in PEM format (PKCS #8)
   * @return the credentials
   * @throws IllegalStateException if the credentials are without TLS
   */
  public Credentials withCertificate(Path certificateFile, Path keyFile) {
    if (!tls) {
      throw new IllegalStateException("a client certificate needs TLS");
    }
    Objects.requireNonNull(certificateFile);
    Objects.requireNonNull(keyFile);
    return new Credentials(true, caFile, certificateFile, keyFile, tokenFile, tokenOverPlaintext);
  }

  /**
   * Returns credentials that also send the token in a file with each call. The file is read for
   * each call, so that a rotated token is used. White space at its ends is ignored.
   *
   * @param tokenFile the file
   * @return the credentials
   */
  public Credentials withTokenFile(Path tokenFile) {
    Objects.requireNonNull(tokenFile);
    return new Credentials(tls, caFile, certificateFile, keyFile, tokenFile, tokenOverPlaintext);
  }

  /**
   * Returns credentials that allow a token without TLS for a target that is not on this machine.
   * Anybody on the way can then read the token and use it. A service mesh that encrypts the
   * connection is a reason to allow it.
   *
   * @return the credentials
   */
  public Credentials allowTokenOverPlaintext() {
    return new Credentials(tls, caFile, certificateFile, keyFile, tokenFile, true);
  }

  /** Refuses a token that everybody on the way to the target could read. */
  void check(String target) {
    if (tokenFile != null && !tls && !tokenOverPlaintext && !isLoopback(target)) {
      throw new IllegalArgumentException(
          target
              + " is not on this machine, and a token is not sent there without TLS: use TLS, or"
              + " allowTokenOverPlaintext()");
    }
  }

  static boolean isLoopback(String target) {
    return LOOPBACK.matcher(target).matches();
  }

  /** Returns what sends the token with each call. */
  Optional<CallCredentials> forCalls() {
    return Optional.ofNullable(tokenFile).map(BearerToken::new);
  }

  /**
   * Returns what verifies the gateway and proves who the client is.
   *
   * @param timer reads a client certificate again
   * @throws IOException if a file cannot be used
   */
  ForConnections forConnections(ScheduledExecutorService timer) throws IOException {
    if (!tls) {
      return new ForConnections(InsecureChannelCredentials.create(), () -> {});
    }
    TlsChannelCredentials.Builder builder = TlsChannelCredentials.newBuilder();
    if (caFile != null) {
      builder.trustManager(caFile.toFile());
    }
    if (certificateFile == null) {
      return new ForConnections(builder.build(), () -> {});
    }
    AdvancedTlsX509KeyManager keyManager = new AdvancedTlsX509KeyManager();
    File certificate = certificateFile.toFile();
    File key = keyFile.toFile();
    try {
      AdvancedTlsX509KeyManager.Closeable updates =
          keyManager.updateIdentityCredentials(
              certificate, key, KEY_CHECK_SECONDS, TimeUnit.SECONDS, timer);
      return new ForConnections(builder.keyManager(keyManager).build(), updates::close);
    } catch (GeneralSecurityException e) {
      throw new IOException("cannot use " + certificate + " with " + key, e);
    }
  }

  /**
   * Credentials of connections.
   *
   * @param credentials the credentials
   * @param stop stops reading files again
   */
  record ForConnections(ChannelCredentials credentials, Runnable stop) {}
}
