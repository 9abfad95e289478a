// Callers for the tests: they repeat status calls and watch one request until it is final, as docs/clients.md says.
//
// Arguments: target, account, request id, number of watches. The environment has the files of the service config, the
// authority, the certificate and its key, and the token. Prints its counts as a line of JSON, ten times a second.
"use strict";

const fs = require("node:fs");
const { setTimeout: sleep } = require("node:timers/promises");
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");

const LOOPS = 2;
const { CALLER_PROTO, CALLER_SERVICE_CONFIG, CALLER_CA, CALLER_CERT, CALLER_KEY, CALLER_TOKEN } = process.env;
const [target, account_name, request_id, watches] = process.argv.slice(2);
const read = (file) => (file ? fs.readFileSync(file) : null);

const definition = protoLoader.loadSync("thingspace/esim/v1/esim.proto", {
  includeDirs: [CALLER_PROTO],
  keepCase: true,
  oneofs: true,
});
const { EsimService } = grpc.loadPackageDefinition(definition).thingspace.esim.v1;
const credentials = CALLER_CA
  ? grpc.credentials.createSsl(read(CALLER_CA), read(CALLER_KEY), read(CALLER_CERT))
  : grpc.credentials.createInsecure();
const stub = new EsimService(target, credentials, {
  "grpc.service_config": read(CALLER_SERVICE_CONFIG).toString(),
  "grpc.max_reconnect_backoff_ms": 2000,
  "grpc.keepalive_time_ms": 60_000,
  "grpc.keepalive_timeout_ms": 20_000,
  "grpc.use_local_subchannel_pool": 1,
});

const counts = { Calls: 0, Opened: 0, Final: 0, Failed: [] };
const print = () => console.log(JSON.stringify(counts));

function metadata() {
  const made = new grpc.Metadata({ waitForReady: true });
  if (CALLER_TOKEN) made.set("authorization", `Bearer ${CALLER_TOKEN}`);
  return made;
}

async function repeatCalls() {
  for (;;) {
    const options = { deadline: Date.now() + 30_000 };
    const failed = await new Promise((resolve) =>
      stub.GetRequestStatus({ account_name, request_id }, metadata(), options, resolve),
    );
    counts.Calls += 1;
    if (failed) counts.Failed.push(String(failed));
    await sleep(10);
  }
}

// Errors with an ErrorInfo of the gateway have this text in their binary details.
const isFromTheGateway = (error) =>
  error.metadata.get("grpc-status-details-bin").some((details) => details.includes("thingspace-gateway"));
const FROM_THE_NETWORK = [grpc.status.CANCELLED, grpc.status.UNKNOWN, grpc.status.INTERNAL, grpc.status.DEADLINE_EXCEEDED];

async function watch() {
  let [resume_token, pause, last] = ["", 500, null];
  for (;;) {
    counts.Opened += 1;
    try {
      for await (const message of stub.WatchRequest({ account_name, request_id, resume_token }, metadata())) {
        pause = 500;
        if (!message.more) [resume_token, last] = [message.resume_token, message];
      }
      const { counts: devices } = last.change ?? last.snapshot ?? last.heartbeat;
      if (!devices.pending) counts.Final += 1;
      return;
    } catch (error) {
      const network = FROM_THE_NETWORK.includes(error.code) && !isFromTheGateway(error);
      if (error.code !== grpc.status.UNAVAILABLE && !network) {
        counts.Failed.push(String(error));
        return;
      }
    }
    await sleep(Math.random() * pause);
    pause = Math.min(2 * pause, 30_000);
  }
}

setInterval(print, 100);
for (let loop = 0; loop < LOOPS; loop += 1) repeatCalls();
Promise.all(Array.from({ length: Number(watches) }, watch)).then(() => {
  print();
  process.exit(0);
});
