"""Ours: dpu-app on the emulator and `host-ctl fetch`, which prints its own times (attach and memory are outside of them)."""

import json
import os
import subprocess
import time
from pathlib import Path

from place import DPU_APP, HOST_CTL, bound
from prefix import CHUNK_BYTES
from ways.way import Way


class Kvlane(Way):
    def __init__(self, place, recipe, remember=False):
        super().__init__(place)
        self.recipe, self.remember = recipe, remember
        self.socket = f"{place.directory}/{os.getpid()}-{recipe}.sock"
        self.app = None
        # Fetches of one host-ctl, which attaches once; over a link its start weighs nothing.
        self.repeat = 1 if place.far else 3

    def start(self):
        # Engines that copy what they inflated before (docs/emulator.md, "Measurement only"): all but inflating is
        # measured.
        emulator = f"remember={2 * self.place.chunks * CHUNK_BYTES}" if self.remember else ""
        environment = dict(os.environ, DOCA_EMULATOR=emulator)
        log = open(f"{self.place.directory}/dpu-app.{os.getpid()}.log", "w")
        self.app = subprocess.Popen(bound(self.place.pinned([DPU_APP, "run", "--attach", "socket", "--socket", self.socket, "--store",
                                    f"redis://{self.place.host}:{self.place.port}"])), stderr=log, stdout=log, env=environment)
        end = time.monotonic() + 20
        while not Path(self.socket).exists():
            if self.app.poll() is not None or time.monotonic() > end:
                raise RuntimeError("dpu-app does not start: " + Path(log.name).read_text().splitlines()[-1])
            time.sleep(0.05)
        doca = self.run("status")["card"]["doca"]
        if self.remember != ("remembering" in doca):
            raise RuntimeError(f"dpu-app runs on DOCA {doca}, not on an emulator that remembers")

    def run(self, verb, *words):
        run = subprocess.run([HOST_CTL, verb, *words, "--socket", self.socket, "--json"], capture_output=True, text=True)
        if run.returncode != 0:
            raise RuntimeError(run.stderr.strip() or run.stdout.strip())
        return json.loads(run.stdout)

    def command(self, verb, *words):
        return self.run(verb, *words, "--model", "peers", "--recipe", self.recipe)

    def store(self):
        self.start()
        self.command("store", self.place.file)
        # Stored by another way already, it says nothing of sizes: a fetch does.
        return self.command("fetch", "--like", self.place.file, "--anonymous")["amounts"]["wire_bytes"]

    def open(self):
        self.start()

    def fetch(self):
        told = self.command("fetch", "--like", self.place.file, "--anonymous", "--repeat", str(self.repeat))
        if not told["whole"]:
            raise RuntimeError(f"only {told['chunks_fetched']} of {self.place.chunks} chunks came back")
        return told["amounts"]["seconds"], self.repeat

    def check(self):
        back = f"{self.place.directory}/{os.getpid()}.safetensors"
        self.command("fetch", "--like", self.place.file, "--out", back)
        compared = subprocess.run([HOST_CTL, "compare", self.place.file, back, "--recipe", self.recipe], capture_output=True, text=True)
        os.unlink(back)
        if compared.returncode != 0:
            raise ValueError(compared.stdout.strip() or compared.stderr.strip())
        return "bit for bit" if self.recipe == "lossless" else "within the quantizer's bound"

    def helpers(self):
        return [self.app.pid] if self.app else []

    def close(self):
        if self.app:
            self.app.kill()
            self.app.wait()
