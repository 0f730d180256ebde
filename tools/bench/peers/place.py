"""Where a benchmark runs: files, a redis-server that is its own, a far network namespace behind a link of limited bandwidth."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
HOST_CTL = ROOT / "target/release/host-ctl"
PLAN = ROOT / "target/release/kvlane-plan"
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
    port: int = 0
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


def bound(command):
    """`command`, ended by the kernel when the thread that starts it ends, in whatever way: nothing outlives a benchmark."""
    return ["setpriv", "--pdeathsig", "KILL", *(str(word) for word in command)]


def end_group(child):
    """Kills a process that `Bench.start` started, and what it started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


class Bench:
    """A temporary directory with the generated prefix; undoes everything that it did to the machine."""

    def __init__(self, mib):
        self.chunks = max(mib // 32, 1)

    def __enter__(self):
        for program in (HOST_CTL, DPU_APP, PLAN):
            if not program.exists():
                sys.exit(f"{program.name} is not built: cargo build --release -p dpu-app -p host-ctl -p kvlane-plan")
        stop_on_signals()
        with ExitStack() as undo:
            self.undo = undo
            self.directory = undo.enter_context(tempfile.TemporaryDirectory(prefix="kvlane-peers-", ignore_cleanup_errors=True))
            self.file = f"{self.directory}/kv.safetensors"
            say(f"generating {self.chunks * 32} MiB of KV")
            subprocess.run([PLAN, "generate", "--from", ROOT / "testdata/decoder-kv.safetensors", "--tokens",
                            str(self.chunks * 256), "--out", self.file, "--quiet"], check=True, stdout=subprocess.DEVNULL)
            self.undo = undo.pop_all()
        return self

    def __exit__(self, *_):
        self.undo.close()

    def start(self, command, **options):
        """A process in a group of its own, so that it can be stopped and ended with what it starts."""
        child = subprocess.Popen(bound(command), start_new_session=True, **options)
        self.undo.callback(end_group, child)
        return child

    def place(self, over_link, cpus="", server_cpus=""):
        """A redis-server of its own, here or in the far namespace."""
        host, far = ("127.0.0.1", [])
        if over_link:
            self.link()
            host, far = FAR, ["ip", "netns", "exec", SPACE]
        port = free_port()
        pin = ["taskset", "--cpu-list", server_cpus] if server_cpus else []
        server = self.start([*far, *pin, "redis-server", "--bind", host, "--port", str(port), "--dir", self.directory, "--save", "",
                             "--appendonly", "no", "--protected-mode", "no"], stdout=subprocess.DEVNULL)
        wait_for(host, port, server)
        return Place(self.file, self.directory, self.chunks, host, port, far, cpus)

    def link(self):
        """A veth pair into a namespace of its own; `limit` sets what the far side may send."""
        if os.geteuid() != 0:
            sys.exit("a network namespace needs root: run as root, or with --rates loopback")
        unlink()  # of a run that was killed
        self.undo.callback(unlink)
        inside = ["ip", "netns", "exec", SPACE]
        for words in (["ip", "netns", "add", SPACE],
                      ["ip", "link", "add", LINK, "type", "veth", "peer", "name", "eth0", "netns", SPACE],
                      ["ip", "address", "add", f"{NEAR}/30", "dev", LINK], ["ip", "link", "set", LINK, "up"],
                      [*inside, "ip", "address", "add", f"{FAR}/30", "dev", "eth0"],
                      [*inside, "ip", "link", "set", "eth0", "up"], [*inside, "ip", "link", "set", "lo", "up"]):
            subprocess.run(words, check=True)


def unlink():
    """Takes the link away, then the namespace: the kernel would take its time over the link of a namespace that is gone."""
    for what in (["link", "delete", LINK], ["netns", "delete", SPACE]):
        subprocess.run(["ip", *what], stderr=subprocess.DEVNULL)


def free_port():
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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
    raise RuntimeError(f"nothing listens on {host}:{port}: {' '.join(process.args)} has failed or takes longer than {seconds} s")
