"""Callers for the tests: they repeat status calls and watch one request until it is final, as docs/clients.md says.

Arguments: target, account, request id, number of watches. The environment has the files of the service config, the
authority, the certificate and its key, and the token. Prints its counts as a line of JSON, ten times a second.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import grpc

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from harness import Stub, channel, documented_watch

LOOPS = 2


def read(variable):
    file = os.environ.get(variable)
    return Path(file).read_bytes() if file else None


class Callers:
    def __init__(self, target, account, request_id):
        credentials = None
        if os.environ.get("CALLER_CA"):
            credentials = grpc.ssl_channel_credentials(read("CALLER_CA"), read("CALLER_KEY"), read("CALLER_CERT"))
        self.stub = Stub(channel(target, credentials))
        self.token = os.environ.get("CALLER_TOKEN", "")
        self.metadata = [("authorization", f"Bearer {self.token}")] if self.token else []
        self.account, self.request_id = account, request_id
        self.documented, _ = documented_watch()
        self.lock = threading.Lock()
        self.counts = {"Calls": 0, "Opened": 0, "Final": 0, "Failed": []}

    def count(self, what, failed=None):
        with self.lock:
            if failed:
                self.counts["Failed"].append(repr(failed))
            else:
                self.counts[what] += 1

    def print(self):
        with self.lock:
            print(json.dumps(self.counts), flush=True)

    def repeat_calls(self):
        while True:
            try:
                self.stub.status(self.request_id, timeout=30, metadata=self.metadata)
                self.count("Calls")
            except grpc.RpcError as error:
                self.count("Calls", error)
            time.sleep(0.01)

    def WatchRequest(self, request, metadata):
        """The method of the stub that the documented loop calls."""
        self.count("Opened")
        return self.stub.WatchRequest(request, metadata=metadata)

    def watch(self):
        try:
            for parts, _ in self.documented(self, self.account, self.request_id, bearer=lambda: self.token):
                last = parts[-1]
            if not getattr(last, last.WhichOneof("event")).counts.pending:
                self.count("Final")
        except grpc.RpcError as error:
            self.count("Final", error)


def main():
    *arguments, watches = sys.argv[1:]
    callers = Callers(*arguments)

    def print_counts():
        while True:
            callers.print()
            time.sleep(0.1)

    for function in [print_counts] + [callers.repeat_calls] * LOOPS:
        threading.Thread(target=function, daemon=True).start()
    threads = [threading.Thread(target=callers.watch) for _ in range(int(watches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    callers.print()
    # Without this, gRPC's threads may still print during the exit.
    sys.stdout.flush()
    os._exit(0)


main()
