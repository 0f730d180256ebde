"""What a benchmark reports: the same JSON and Markdown as tools/bench/src/report.rs, which is the definition."""

import json
import os
import platform
import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path


def machine():
    """The machine that a figure came from, as the kernel tells it."""
    def read(path, name):
        lines = (line.split(":", 1) for line in Path(path).read_text().splitlines() if ":" in line)
        return next((value.strip() for key, value in lines if key.strip() == name), "unknown")

    return {
        "cpu": read("/proc/cpuinfo", "model name"),
        "cpus": len(os.sched_getaffinity(0)),
        "arch": platform.machine(),
        "memory_gib": round(int(read("/proc/meminfo", "MemTotal").split()[0]) / (1 << 20), 1),
        "kernel": platform.release(),
    }


def command(name):
    """What to type to get the figures of the report `name` again."""
    return " ".join(["tools/bench/peers/run.sh", name, *sys.argv[1:]])


def quantile(values, rank):
    """Nearest rank, as bench::Sample has it."""
    ordered = sorted(values)
    return ordered[min(max(-int(-rank * len(ordered) // 1) - 1, 0), len(ordered) - 1)]


def median(values):
    return statistics.median(values)


def spread(values):
    """Half of the distance between the quartiles as a share of the median, in words."""
    return f"±{(quantile(values, 0.75) - quantile(values, 0.25)) / 2 / median(values):.0%}"


@dataclass
class Table:
    title: str
    columns: list
    rows: list = field(default_factory=list)
    note: str = ""

    def row(self, *cells):
        assert len(cells) == len(self.columns), (self.title, cells)
        self.rows.append([str(cell) for cell in cells])

    def markdown(self):
        lines = [self.columns, *self.rows]
        text = ["| " + " | ".join(cells) + " |" for cells in lines]
        text.insert(1, "|" + "---|" * len(self.columns))
        return "\n".join([f"**{self.title}**", "", *text, *(["", self.note] if self.note else [])])


@dataclass
class Report:
    name: str
    title: str
    command: str
    machine: dict = field(default_factory=machine)
    versions: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    tables: list = field(default_factory=list)
    plots: list = field(default_factory=list)

    def plot(self, name, title, x, y, series, kind="lines", log_x=False, log_y=False):
        """`series`: (name, points) or, for bars, (name, points, labels of the groups)."""
        named = [{"name": one[0], "points": one[1], "labels": list(one[2:3] and one[2])} for one in series]
        self.plots.append({"name": name, "title": title, "x": x, "y": y, "log_x": log_x, "log_y": log_y,
                           "kind": kind, "series": named})

    def publish(self):
        """Prints the report, and leaves NAME.json in $KVLANE_BENCH_OUT if that is set."""
        text = [f"## {self.title}", f"`{self.command}`", *self.notes, *(table.markdown() for table in self.tables)]
        print("\n\n".join(text))
        if out := os.environ.get("KVLANE_BENCH_OUT"):
            Path(out, f"{self.name}.json").write_text(json.dumps(asdict(self), indent=2) + "\n")
