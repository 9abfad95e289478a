"""Runs the gateway with its simulated ThingSpace."""

import os
import re
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).parents[3]
GATEWAY = ROOT / "target" / "debug" / "thingspace-gateway"
# The longest wait for anything that does happen. The machine may be slow.
PATIENCE = 60.0


class Dev:
    """`thingspace-gateway dev` on a free port."""

    def __init__(self, folder: Path) -> None:
        log = folder / "dev.log"
        with log.open("wb") as output:
            command = [str(GATEWAY), "dev", "--listen", "127.0.0.1:0"]
            environment = {**os.environ, "NO_COLOR": "1"}
            self._process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
        end = time.monotonic() + PATIENCE
        while not (found := re.search(r"(127\.0\.0\.1:\d+) thingspace", log.read_text())):
            assert self._process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.02)
        self.target = found[1]

    def __enter__(self) -> "Dev":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
