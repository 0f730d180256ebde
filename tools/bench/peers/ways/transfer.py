"""What Mooncake's and NIXL's ways share: a far process that holds the chunks in memory, from which the near one reads."""

import json
import os
import subprocess
import sys
from pathlib import Path

from place import bound
from prefix import CHUNK_BYTES
from ways.way import Way

FAR = Path(__file__).resolve().parent.parent / "far.py"


class Transfer(Way):
    kind = ""
    far = None

    def environment(self, device):
        """Of the far and the near process; `device` is the network interface."""
        return {}

    def store(self):
        return self.place.chunks * CHUNK_BYTES

    def open(self):
        super().open()
        there = "eth0" if self.place.far else "lo"
        self.far = subprocess.Popen(bound([*self.place.far, sys.executable, FAR, self.kind, self.place.text()]), stdin=subprocess.PIPE,
                                    stdout=subprocess.PIPE, text=True, env=dict(os.environ, **self.environment(there)))
        line = self.far.stdout.readline()
        if not line:
            raise RuntimeError(f"the far side ended with {self.far.wait()}")
        self.told = json.loads(line)

    def remote(self, index, offset):
        return self.told["address"] + index * CHUNK_BYTES + offset

    def close(self):
        if self.far:
            self.far.stdin.close()
            self.far.wait()
