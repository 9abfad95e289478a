import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFile, writeFile } from "node:fs/promises";
import { test } from "node:test";
import { promisify } from "node:util";

import { Gateway } from "./support.js";

// `check` installs the package into this folder, and compiles the example there.
const USER = "../../target/clients/typescript/user";

test("the example of the README works with the package, and its process ends", async (t) => {
  const gateway = await Gateway.start(t, "--listen", "127.0.0.1:0");
  const example = await readFile(`${USER}/example.js`, "utf8");
  assert(example.includes("127.0.0.1:50051"));
  await writeFile(`${USER}/run.js`, example.replace("127.0.0.1:50051", gateway.address));
  const { stdout, stderr } = await promisify(execFile)(process.execPath, [`${USER}/run.js`]);
  assert.match(stdout, /^snapshot PENDING \{ total: 1, pending: 1, succeeded: 0, failed: 0 \}\n/);
  assert.match(stdout, /\nchange SUCCEEDED \{ total: 1, pending: 0, succeeded: 1, failed: 0 \}\n$/);
  assert.equal(stderr, "");
});
