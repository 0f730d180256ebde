"""The same prefix restored by kvlane and by what users pick, in one run: the report `peers`."""

import argparse
import json
import os
import select
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from place import Bench, end_group, limit, say
from prefix import CHUNK_BYTES
from report import Report, Table, command, median, spread
from ways import LINKED, QUICK_LINKED, WAYS

PACKAGES = ("lmcache", "torch", "redis", "hiredis", "lz4", "zstandard", "safetensors", "nixl", "mooncake-transfer-engine-non-cuda", "numpy")

# Longest time that a way may take for one fetch, or for storing; longer is an error of its row.
PATIENCE_S = 60


class Client:
    """A way in its own process, driven by words. It and what it started stand still unless a word is being answered."""

    def __init__(self, bench, name, place):
        self.name = name
        log = open(f"{place.directory}/{name.replace(' ', '-')}.log", "a")
        self.process = bench.start([sys.executable, Path(__file__).with_name("client.py"), name, place.text()], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=log, text=True,
                                   env=dict(os.environ, PYTHONHASHSEED="0"))  # LMCache's keys depend on it
        self.error = None

    def signal(self, number):
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def ask(self, word):
        """The answer, or None from the first error on."""
        if self.error:
            return None
        self.signal(signal.SIGCONT)
        try:
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()
            line = select.select([self.process.stdout], [], [], PATIENCE_S)[0] and self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            reply = json.loads(line)
        else:
            reply = {"error": f"{word}: no answer in {PATIENCE_S} s" if line == [] else f"its process ended with {self.process.wait()}"}
        self.signal(signal.SIGKILL if line == [] else signal.SIGSTOP)
        self.error = reply.get("error")
        if self.error:
            say(f"  {self.name}: {word}: {self.error}")
        return None if self.error else reply

    def end(self):
        self.signal(signal.SIGCONT)
        try:
            self.process.stdin.close()
            self.process.wait(20)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            pass  # an engine that does not close
        end_group(self.process)


def stored(bench, place, names):
    """Stores the prefix for each way; its bytes on the wire, or the error."""
    told = {}
    for index, name in enumerate(names):
        say(f"store {index + 1} of {len(names)}: {name}")
        client = Client(bench, name, place)
        reply = client.ask("store")
        client.end()
        told[name] = reply["wire_bytes"] if reply else client.error
    return told


def leg(bench, place, names, rates, runs, warm):
    """All ways in turn, `runs` times at each rate: (bytes on the wire, {rate: {name: its fetches}}, checks, errors)."""
    told = stored(bench, place, names)
    clients = {name: Client(bench, name, place) for name in names if not isinstance(told[name], str)}
    for client in clients.values():
        client.ask("open")
    measured = {}
    for rate in rates:
        if rate != "loopback":
            limit(rate)
        samples = {name: [] for name in clients}
        for turn in range(warm + runs):
            replies = {name: client.ask("fetch") for name, client in clients.items()}
            say(f"{rate}{' Gbit/s' * (rate != 'loopback')}: turn {turn + 1} of {warm + runs}: "
                + ", ".join(f"{name} {reply['seconds']:.2f} s" for name, reply in replies.items() if reply))
            for name, reply in replies.items():
                if reply and turn >= warm:
                    samples[name].append(reply)
        measured[rate] = samples
    checks = {name: client.ask("check") for name, client in clients.items()}
    errors = {name: words for name, words in told.items() if isinstance(words, str)}
    errors |= {name: client.error for name, client in clients.items() if client.error}
    for client in clients.values():
        client.end()
    return told, measured, checks, errors


def loopback_table(told, samples, checks, errors, raw_bytes, runs):
    table = Table("On loopback", ["way", "wire MB", "restored bf16 MB/s", "spread", "MB per CPU-second", "CPU s / GB", "of it the client's process", "peak RSS beyond the pages, MiB", "checked"],
                  note=f"Medians of {runs}, in turn. CPU and memory: the client's process and its helpers (for kvlane host-ctl, with its "
                       "start and the first touch of its memory, and dpu-app, emulated engines included), the server apart. Each stands still while another is measured. A process with torch or numpy in it weighs what those weigh.")
    for name, words in told.items():
        if name in errors:
            table.row(name, "-", "cannot run here", *["-"] * 5, errors[name])
            continue
        seconds = [one["seconds"] for one in samples[name]]
        cpu = median([one["cpu"] for one in samples[name]])
        host = median([one["host_cpu"] for one in samples[name]])
        peak = max(one["beyond_mib"] for one in samples[name])
        table.row(name, f"{words / 1e6:.0f}", f"{raw_bytes / 1e6 / median(seconds):.0f}", spread(seconds), f"{raw_bytes / 1e6 / cpu:.0f}",
                  f"{cpu / raw_bytes * 1e9:.2f}", f"{host / raw_bytes * 1e9:.2f}", f"{peak:.0f}", checks[name]["check"])
    return table


def link_table(measured, told, errors, raw_bytes):
    table = Table("Over links: restored bf16 MB/s (CPU s / GB)", ["way", *(f"{rate} Gbit/s" for rate in measured)],
                  note="A network namespace behind a veth pair, `tc tbf` on the far side; server, link, client and the emulated card share two cores.")
    for name in told:
        if name in errors:
            table.row(name, *([errors[name]] + ["-"] * (len(measured) - 1)))
            continue
        cells = []
        for samples in measured.values():
            rate = raw_bytes / 1e6 / median([one["seconds"] for one in samples[name]])
            cpu = median([one["cpu"] for one in samples[name]]) / raw_bytes * 1e9
            cells.append(f"{rate:.0f} ({cpu:.2f})")
        table.row(name, *cells)
    return table


def bars(report, name, title, measured, good, raw_bytes):
    """Restored GB/s: a group for each way, a bar for each link."""
    def speed(rate, way):
        return raw_bytes / 1e9 / median([one["seconds"] for one in measured[rate][way]])

    series = [(rate if rate == "loopback" else f"{rate} Gbit/s", [(index, round(speed(rate, way), 3)) for index, way in enumerate(good)], good)
              for rate in measured]
    report.plot(name, title, "", "GB/s", series, kind="bars")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=192, help="restored bf16, in steps of 32 [%(default)s]")
    parser.add_argument("--runs", type=int, default=5, help="fetches of which the median counts [%(default)s]")
    parser.add_argument("--rates", default="loopback,1,5,10", help="Gbit/s, comma-separated, and loopback [%(default)s]")
    parser.add_argument("--only", default="", help="ways whose names contain one of these, comma-separated")
    parser.add_argument("--quick", action="store_true", help="32 MiB, one run, loopback, and three ways at 10 Gbit/s: does everything work?")
    options = parser.parse_args()
    if options.quick:
        options.mib, options.runs, options.rates = 32, 1, "loopback,10"
    return options


def notes(raw_bytes):
    return [
        f"{raw_bytes >> 20} MiB of bf16 KV of an 8B-class geometry (32 layers x 8 heads x 128, chunks of 256 tokens; synthetic, made from real KV by "
        "`kvlane-plan generate`) come back into shuffled pages of 16 tokens, as a serving engine holds them. kvlane's engines and DMA are the emulator's: "
        "**software on the same two cores**, where a card has hardware of its own; its CPU figures say what that software costs, not what a host pays. "
        "\"remembered\": the emulator copies what it inflated before instead of inflating it, a measurement-only mode.",
        "LMCache: its engine with the Redis connector, chunks of 256 tokens, CPU tensors, no local tier; a connector of ours of ten lines copies chunks into "
        "the pages, since its own need a GPU. Mooncake and NIXL move bytes out of another process's memory: no store, no look-up. Every way is checked after its runs.",
    ]


def main():
    options = arguments()
    names = [name for name in WAYS if not options.only or any(part in name for part in options.only.split(","))]
    rates = options.rates.split(",")
    links, linked = [rate for rate in rates if rate != "loopback"], QUICK_LINKED if options.quick else LINKED
    report = Report("peers", "Beside what users pick", command("peers"))
    report.versions = [f"{package} {version(package)}" for package in PACKAGES]
    report.versions.append(subprocess.run(["redis-server", "--version"], capture_output=True, text=True).stdout.split()[2].replace("v=", "redis-server "))
    with Bench(options.mib) as bench:
        raw_bytes = bench.chunks * CHUNK_BYTES
        report.notes = notes(raw_bytes)
        if "loopback" in rates:
            place = bench.place(over_link=False)
            told, measured, checks, errors = leg(bench, place, names, ["loopback"], options.runs, 0 if options.quick else 1)
            report.tables.append(loopback_table(told, measured["loopback"], checks, errors, raw_bytes, options.runs))
            bars(report, "peers-loopback", "Restored bf16 on loopback", measured, [name for name in told if name not in errors], raw_bytes)
        if links:
            place = bench.place(over_link=True)
            told, measured, _, errors = leg(bench, place, [name for name in names if name in linked], links, max(options.runs - 2, 1), 0)
            report.tables.append(link_table(measured, told, errors, raw_bytes))
            bars(report, "peers-links", "Restored bf16 over links", measured, [name for name in told if name not in errors], raw_bytes)
    report.publish()


if __name__ == "__main__":
    main()
