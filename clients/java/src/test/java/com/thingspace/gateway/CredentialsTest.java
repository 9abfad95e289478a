package com.thingspace.gateway;

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.thingspace.esim.v1.DeviceIdentifiers;
import io.grpc.ServerCredentials;
import io.grpc.Status;
import io.grpc.TlsServerCredentials;
import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.util.Base64;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Tokens and certificates. */
class CredentialsTest {
  private static final List<DeviceIdentifiers> NO_DEVICES = List.of();

  @ParameterizedTest
  @ValueSource(
      strings = {
        "localhost:1",
        "127.0.0.1:1",
        "127.9.9.9",
        "dns:///localhost:1",
        "dns:127.0.0.1:1",
        "[::1]:1",
        "unix:/run/gateway.sock",
        "unix:///run/gateway.sock"
      })
  void theseTargetsAreOnThisMachine(String target) {
    assertTrue(Credentials.isLoopback(target));
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "gateway:1", "10.0.0.1:1", "127.0.0.1.example.com:1", "localhost.example.com:1",
        "dns://10.0.0.1/localhost:1", "dns:///127.example.com", "xds:///localhost", "[::2]:1"
      })
  void otherTargetsAreNot(String target) {
    assertFalse(Credentials.isLoopback(target));
    Credentials token = Credentials.insecure().withTokenFile(Path.of("token"));
    assertThrows(IllegalArgumentException.class, () -> GatewayClient.connect(target, token));
    token.allowTokenOverPlaintext().check(target);
    Credentials.tls().withTokenFile(Path.of("token")).check(target);
  }

  @Test
  void theTokenFileIsReadForEachCall(@TempDir Path folder) throws Exception {
    Path file = folder.resolve("token");
    Credentials credentials = Credentials.insecure().withTokenFile(file);
    try (Peer peer = new Peer();
        GatewayClient client = GatewayClient.connect(peer.target(), credentials)) {
      peer.answerOrders(Peer.accept("request"));
      Files.writeString(file, "  the-first\n");
      client.order("account", NO_DEVICES, "key");
      Files.writeString(file, "the-second");
      client.order("account", NO_DEVICES, "key");
      assertEquals(List.of("Bearer the-first", "Bearer the-second"), peer.tokens);
      for (String wrong : List.of("", " \n", "two words", "a\nb", "s\u00e9cret")) {
        Files.writeString(file, wrong);
        assertRefused(client, wrong);
      }
      Files.write(file, new byte[] {'s', (byte) 0xff});
      assertRefused(client, "");
      Files.delete(file);
      assertRefused(client, "");
      assertEquals(2, peer.orders.size());
    }
  }

  private static void assertRefused(GatewayClient client, String token) {
    GatewayException error =
        assertThrows(GatewayException.class, () -> client.order("account", NO_DEVICES, "key"));
    assertEquals(Status.Code.UNAUTHENTICATED, error.explanation().code());
    assertTrue(error.getMessage().contains("the token file"), error.getMessage());
    assertTrue(token.isBlank() || !error.getMessage().contains(token), error.getMessage());
  }

  @Test
  void filesThatCannotBeUsedAreReportedByConnect(@TempDir Path folder) throws Exception {
    Path missing = folder.resolve("missing.pem");
    assertThrows(IOException.class, () -> connect(Credentials.tls(missing)));
    Credentials withoutKey = Credentials.tls().withCertificate(missing, missing);
    assertThrows(IOException.class, () -> connect(withoutKey));
    Path text = Files.writeString(folder.resolve("text.pem"), "no certificate");
    assertThrows(IllegalArgumentException.class, () -> connect(Credentials.tls(text)));
    assertThrows(
        IllegalStateException.class,
        () -> Credentials.insecure().withCertificate(missing, missing));
  }

  private static void connect(Credentials credentials) throws IOException {
    GatewayClient.connect("127.0.0.1:1", credentials).close();
  }

  @Test
  void aNewClientCertificateIsUsedForNewConnections(@TempDir Path folder) throws Exception {
    Pair server = Pair.make(folder, "server");
    Pair first = Pair.make(folder, "first");
    Pair second = Pair.make(folder, "second");
    Path clients =
        Files.writeString(
            folder.resolve("clients.pem"),
            Files.readString(first.certificate) + Files.readString(second.certificate));
    Pair current = new Pair(folder.resolve("client.pem"), folder.resolve("client.key"));
    first.copyTo(current);
    Credentials credentials =
        Credentials.tls(server.certificate).withCertificate(current.certificate, current.key);
    Peer peer = new Peer(0, server.forServer(clients));
    try (GatewayClient client = GatewayClient.connect(peer.target(), credentials)) {
      peer.answerOrders(Peer.accept("request"));
      client.order("account", NO_DEVICES, "key");
      assertEquals(List.of("CN=first"), peer.clients);
      second.copyTo(current);
      Await.until(
          "the second certificate",
          () -> {
            // A server that starts again gets a new connection.
            int port = peer.port;
            peer.close();
            try (Peer next = new Peer(port, server.forServer(clients))) {
              next.answerOrders(Peer.accept("request"));
              client.order("account", NO_DEVICES, "key");
              return next.clients.contains("CN=second");
            }
          });
    } finally {
      peer.close();
    }
  }

  /** A self-signed certificate and its key in PEM files. */
  private record Pair(Path certificate, Path key) {
    static Pair make(Path folder, String name) throws Exception {
      Path store = folder.resolve(name + ".p12");
      Path keytool = Path.of(System.getProperty("java.home"), "bin", "keytool");
      Process process =
          new ProcessBuilder(
                  keytool.toString(),
                  "-genkeypair",
                  "-keyalg",
                  "EC",
                  "-dname",
                  "CN=" + name,
                  "-ext",
                  "san=ip:127.0.0.1",
                  "-alias",
                  "pair",
                  "-storepass",
                  "password",
                  "-keystore",
                  store.toString())
              .redirectOutput(ProcessBuilder.Redirect.DISCARD)
              .redirectError(ProcessBuilder.Redirect.DISCARD)
              .start();
      assertEquals(0, process.waitFor());
      KeyStore keys = KeyStore.getInstance("PKCS12");
      try (InputStream file = Files.newInputStream(store)) {
        keys.load(file, "password".toCharArray());
      }
      return new Pair(
          pem(folder, name + ".pem", "CERTIFICATE", keys.getCertificate("pair").getEncoded()),
          pem(
              folder,
              name + ".key",
              "PRIVATE KEY",
              keys.getKey("pair", "password".toCharArray()).getEncoded()));
    }

    private static Path pem(Path folder, String name, String kind, byte[] bytes)
        throws IOException {
      String body = Base64.getMimeEncoder(64, "\n".getBytes(UTF_8)).encodeToString(bytes);
      return Files.writeString(
          folder.resolve(name),
          "-----BEGIN " + kind + "-----\n" + body + "\n-----END " + kind + "-----\n");
    }

    void copyTo(Pair target) throws IOException {
      Files.writeString(target.certificate, Files.readString(certificate));
      Files.writeString(target.key, Files.readString(key));
    }

    ServerCredentials forServer(Path clients) throws IOException {
      return TlsServerCredentials.newBuilder()
          .keyManager(certificate.toFile(), key.toFile())
          .trustManager(clients.toFile())
          .clientAuth(TlsServerCredentials.ClientAuth.REQUIRE)
          .build();
    }
  }
}
