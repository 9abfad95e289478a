package com.thingspace.gateway;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Optional;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Tokens in files. */
class FileTokenStoreTest {
  @Test
  void keepsTheLastTokenOfEachRequest(@TempDir Path folder) throws IOException {
    Path tokens = folder.resolve("new").resolve("tokens");
    TokenStore store = new FileTokenStore(tokens);
    assertEquals(Optional.empty(), store.load("account", "a"));
    store.delete("account", "a");
    store.save("account", "a", "1");
    store.save("account", "a", "2");
    store.save("account", "b", "3");
    assertEquals(Optional.of("2"), new FileTokenStore(tokens).load("account", "a"));
    store.delete("account", "a");
    assertEquals(Optional.empty(), store.load("account", "a"));
    assertEquals(Optional.of("3"), store.load("account", "b"));
    assertEquals(1, files(tokens).size());
  }

  @Test
  void noIdNamesAnotherFile(@TempDir Path folder) throws IOException {
    Path tokens = folder.resolve("tokens");
    TokenStore store = new FileTokenStore(tokens);
    for (String id : List.of("../escape", "/etc/passwd", "a\0b", "..", "", "x".repeat(5000))) {
      store.save("account", id, id + "!");
      assertEquals(Optional.of(id.strip() + "!"), store.load("account", id));
    }
    assertEquals(List.of(tokens), files(folder));
    assertEquals(6, files(tokens).size());
  }

  @Test
  void aFailedSaveLeavesNothing(@TempDir Path folder) throws IOException {
    TokenStore store = new FileTokenStore(folder);
    store.save("account", "a", "1");
    Path file = files(folder).get(0);
    Files.delete(file);
    Files.createDirectories(file.resolve("a folder in the place of the file"));
    assertThrows(IOException.class, () -> store.save("account", "a", "2"));
    assertEquals(List.of(file), files(folder));
  }

  private static List<Path> files(Path folder) throws IOException {
    try (var files = Files.list(folder)) {
      return files.toList();
    }
  }
}
