package com.thingspace.gateway;

import static java.nio.charset.StandardCharsets.UTF_8;

import java.io.File;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.nio.file.StandardOpenOption;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.HexFormat;
import java.util.Optional;

/**
 * A {@link TokenStore} with a file for each request. The name of a file is a hash, so that no id
 * can name another file. Only one process should watch a request with the same directory.
 */
public final class FileTokenStore implements TokenStore {
  private final Path directory;

  /**
   * Creates a store.
   *
   * @param directory where the files are; it is created if it does not exist
   */
  public FileTokenStore(Path directory) {
    this.directory = directory.toAbsolutePath();
  }

  @Override
  public Optional<String> load(String account, String requestId) throws IOException {
    try {
      String token = Files.readString(path(account, requestId)).strip();
      return token.isEmpty() ? Optional.empty() : Optional.of(token);
    } catch (NoSuchFileException e) {
      return Optional.empty();
    }
  }

  /** {@inheritDoc} It replaces the file in one step, and syncs file and directory. */
  @Override
  public void save(String account, String requestId, String token) throws IOException {
    Files.createDirectories(directory);
    Path file = Files.createTempFile(directory, "new-", null);
    try {
      try (FileChannel channel = FileChannel.open(file, StandardOpenOption.WRITE)) {
        ByteBuffer bytes = ByteBuffer.wrap(token.getBytes(UTF_8));
        while (bytes.hasRemaining()) {
          channel.write(bytes);
        }
        channel.force(true);
      }
      Files.move(file, path(account, requestId), StandardCopyOption.ATOMIC_MOVE);
    } finally {
      Files.deleteIfExists(file);
    }
    syncDirectory();
  }

  @Override
  public void delete(String account, String requestId) throws IOException {
    Files.deleteIfExists(path(account, requestId));
  }

  private Path path(String account, String requestId) {
    try {
      // Neither an account nor an id contains a slash.
      byte[] name = (account + "/" + requestId).getBytes(UTF_8);
      byte[] hash = MessageDigest.getInstance("SHA-256").digest(name);
      return directory.resolve(HexFormat.of().formatHex(hash) + ".token");
    } catch (NoSuchAlgorithmException e) {
      throw new AssertionError("every Java platform has SHA-256", e);
    }
  }

  /** Makes the names in the directory durable. Windows cannot do that. */
  private void syncDirectory() throws IOException {
    if (File.separatorChar == '/') {
      try (FileChannel channel = FileChannel.open(directory, StandardOpenOption.READ)) {
        channel.force(true);
      }
    }
  }
}
