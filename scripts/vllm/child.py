"""An engine in a process of its own: vLLM gives memory and threads back only with its process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def run(script: str, order: dict[str, Any], log: Path) -> dict[str, Any]:
    """Starts a script again with `--engine`, gives it its order, and returns the last line that it says with an @."""
    with log.open("w") as errors:
        child = subprocess.run(
            [sys.executable, script, "--engine"],
            input=json.dumps(order),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        errors.write(child.stdout)
    lines = [line for line in child.stdout.splitlines() if line.startswith("@")]
    if child.returncode or not lines:
        sys.exit(f"vLLM ended with {child.returncode}: look at {log}")
    return dict(json.loads(lines[-1][1:]))
