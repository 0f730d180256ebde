"""Where a benchmark runs: files, a redis-server that is its own, a far network namespace behind a link of limited bandwidth."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOST_CTL = ROOT / "target/release/host-ctl"
DPU_APP = ROOT / "target/release/dpu-app"

# Addresses that RFC 2544 sets aside for benchmarks.
NEAR, FAR = "198.18.78.1", "198.18.78.2"
SPACE, LINK = "kvlane-peers", "kvl-peers"


def say(text):
    """Progress, with the time."""
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


def stop_on_signals():
    """A SIGTERM ends the benchmark as Ctrl-C does, so that every `finally` runs."""
    def leave(number, _):
        raise SystemExit(128 + number)
    signal.signal(signal.SIGTERM, leave)


@dataclass
class Place:
    """All that a way needs to know; passed to client processes as JSON."""

    file: str
    directory: str
    chunks: int
    host: str = "127.0.0.1"
    port: int = 7491
    far: list = field(default_factory=list)
    cpus: str = ""

    def text(self):
        return json.dumps(asdict(self))

    def near(self):
        """Our own address on the way to the store."""
        return NEAR if self.far else "127.0.0.1"

    def pinned(self, command):
        """`command` on the cores that the place names."""
        return (["taskset", "--cpu-list", self.cpus] if self.cpus else []) + [str(word) for word in command]


class Bench:
    """A temporary directory with the generated prefix; ends every process that was started here."""

    def __init__(self, mib):
        for program in (HOST_CTL, DPU_APP):
            if not program.exists():
                sys.exit(f"{program.name} is not built: cargo build --release")
        stop_on_signals()
        self.directory = tempfile.mkdtemp(prefix="kvlane-peers-")
        self.children = []
        self.space = False
        self.chunks = max(mib // 32, 1)
        self.file = f"{self.directory}/kv.safetensors"
        say(f"generating {self.chunks * 32} MiB of KV")
        subprocess.run([HOST_CTL, "generate", "--from", ROOT / "testdata/decoder-kv.safetensors", "--tokens",
                        str(self.chunks * 256), "--out", self.file, "--quiet"], check=True, stdout=subprocess.DEVNULL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for child in self.children:
            child.kill()
            child.wait()
        if self.space:
            subprocess.run(["ip", "netns", "delete", SPACE], stderr=subprocess.DEVNULL)
        shutil.rmtree(self.directory, ignore_errors=True)

    def start(self, command, **options):
        child = subprocess.Popen([str(word) for word in command], **options)
        self.children.append(child)
        return child

    def place(self, over_link, cpus="", server_cpus=""):
        """A redis-server of its own, here or in the far namespace."""
        host, far = ("127.0.0.1", [])
        if over_link:
            self.link()
            host, far = FAR, ["ip", "netns", "exec", SPACE]
        port = 7492 if over_link else 7491
        pin = ["taskset", "--cpu-list", server_cpus] if server_cpus else []
        server = self.start([*far, *pin, "redis-server", "--bind", host, "--port", str(port), "--dir", self.directory, "--save", "",
                             "--appendonly", "no", "--protected-mode", "no"], stdout=subprocess.DEVNULL)
        wait_for(host, port, server)
        return Place(self.file, self.directory, self.chunks, host, port, far, cpus)

    def link(self):
        """A veth pair into a namespace of its own; `limit` sets what the far side may send."""
        if os.geteuid() != 0:
            sys.exit("a network namespace needs root: run as root, or with --rates loopback")
        subprocess.run(["ip", "netns", "delete", SPACE], stderr=subprocess.DEVNULL)
        inside = ["ip", "netns", "exec", SPACE]
        for words in (["ip", "netns", "add", SPACE],
                      ["ip", "link", "add", LINK, "type", "veth", "peer", "name", "eth0", "netns", SPACE],
                      ["ip", "address", "add", f"{NEAR}/30", "dev", LINK], ["ip", "link", "set", LINK, "up"],
                      [*inside, "ip", "address", "add", f"{FAR}/30", "dev", "eth0"],
                      [*inside, "ip", "link", "set", "eth0", "up"], [*inside, "ip", "link", "set", "lo", "up"]):
            subprocess.run(words, check=True)
            self.space = True


def limit(rate):
    """Limits what the far namespace sends to `rate` Gbit/s, as scripts/bench-links.sh does."""
    subprocess.run(["ip", "netns", "exec", SPACE, "tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", f"{rate}gbit",
                    "burst", "1mb", "latency", "50ms"], check=True)


def wait_for(host, port, process, seconds=10):
    """Until something listens, or an error that says that it does not."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            return socket.create_connection((host, port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
    sys.exit(f"nothing listens on {host}:{port}: is the port taken, or did {process.args[-1]} fail?")
