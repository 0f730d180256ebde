"""What processes cost: CPU seconds and the peak of resident memory."""

import resource
from pathlib import Path


def cpu_seconds():
    """CPU of this process and of its children that have ended."""
    own = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in own)


def of_process(pid):
    """CPU seconds of all threads that `pid` has now."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def peak_mib(pids=()):
    """Peak resident memory: this process's, its largest ended child's, and that of `pids`, added up."""
    kib = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_CHILDREN,))
    for pid in ("self", *pids):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        kib += next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return kib / 1024
