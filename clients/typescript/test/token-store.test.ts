import assert from "node:assert/strict";
import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";

import { FileTokenStore } from "../src/index.js";
import { directory } from "./support.js";

test("a token is kept in a file of its request", async (t) => {
  const folder = join(await directory(t), "new", "folder");
  const store = new FileTokenStore(folder);
  assert.equal(await store.load("account", "request"), undefined);
  await store.delete("account", "request");
  await store.save("account", "request", "one");
  await store.save("account", "request", "two");
  await store.save("account", "other", "three");
  assert.equal(await new FileTokenStore(folder).load("account", "request"), "two");
  assert.equal(await store.load("account", "other"), "three");
  assert.equal((await readdir(folder)).length, 2);
  await store.delete("account", "request");
  assert.equal(await store.load("account", "request"), undefined);
  const [file = ""] = await readdir(folder);
  assert.equal(await readFile(join(folder, file), "utf8"), "three");
  assert.equal((await stat(join(folder, file))).mode & 0o777, 0o600);
});

test("no id leads out of the directory or to the file of another request", async (t) => {
  const parent = await directory(t);
  const store = new FileTokenStore(join(parent, "tokens"));
  const ids: [string, string][] = [
    ["..", "../../escape"],
    ["a", "b/c"],
    ["a/b", "c"],
    ["a", "B/C"],
    ["a\0", "b"],
    ["", "a".repeat(5000)],
  ];
  for (const [n, [account, request]] of ids.entries())
    await store.save(account, request, String(n));
  for (const [n, [account, request]] of ids.entries()) {
    assert.equal(await store.load(account, request), String(n));
  }
  assert.deepEqual(await readdir(parent), ["tokens"]);
  assert.equal((await readdir(join(parent, "tokens"))).length, ids.length);
});

test("a failed save leaves no file behind", async (t) => {
  const folder = await directory(t);
  const store = new FileTokenStore(folder);
  // The token cannot be written.
  await assert.rejects(store.save("account", "request", 1 as never), TypeError);
  assert.deepEqual(await readdir(folder), []);
});
