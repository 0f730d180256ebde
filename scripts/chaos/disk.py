"""A disk that hangs: each read of a file below a directory waits, uninterruptibly to the program, until the disk goes on.

The kernel's own means (a suspended device mapper, FUSE) need modules and root. A library that is loaded before the C library
does the same to one process, for the call by which a `dir:` store reads blocks and tails: `pread64`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

/* Tells whether the file lies below the directory and the disk stands still. */
static int hangs(int fd)
{
	const char *gate = getenv("CHAOS_GATE"), *root = getenv("CHAOS_ROOT");
	char link[64], path[4096];
	if (!gate || !root || access(gate, F_OK) != 0)
		return 0;
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t bytes = readlink(link, path, sizeof path - 1);
	if (bytes < 0)
		return 0;
	path[bytes] = 0;
	return strncmp(path, root, strlen(root)) == 0;
}

ssize_t pread64(int fd, void *into, size_t bytes, off64_t at)
{
	static ssize_t (*real)(int, void *, size_t, off64_t);
	const struct timespec rest = { 0, 5000000 };
	if (!real)
		real = (ssize_t (*)(int, void *, size_t, off64_t))dlsym(RTLD_NEXT, "pread64");
	while (hangs(fd))
		nanosleep(&rest, NULL);
	return real(fd, into, bytes, at);
}
"""


class Disk:
    """What lies below `root`, for the processes that are started with `environment`."""

    def __init__(self, directory: Path, root: Path) -> None:
        self._gate = directory / "disk-hangs"
        library, source = directory / "disk.so", directory / "disk.c"
        source.write_text(SOURCE)
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        self.environment = {
            "LD_PRELOAD": str(library),
            "CHAOS_GATE": str(self._gate),
            "CHAOS_ROOT": str(root),
        }

    @staticmethod
    def lacks() -> str | None:
        """What keeps this machine from having such a disk."""
        return None if shutil.which("cc") else "no C compiler (cc) here"

    def freeze(self) -> None:
        self._gate.touch()

    def thaw(self) -> None:
        self._gate.unlink(missing_ok=True)
