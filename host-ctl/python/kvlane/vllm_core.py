"""vLLM's engine core, which a connector is not given, as far as it can be found: its queue, to wake it while it has nothing to
do, and whether it was told to stop. Where it is not found (no process of its own, another release) nothing of it is used."""

from __future__ import annotations

import sys
from typing import Any


class Core:
    """Made where the connector is made: the engine core is among the callers."""

    def __init__(self) -> None:
        self._core: Any = None
        frame = sys._getframe(1)
        while frame is not None and self._core is None:
            caller = frame.f_locals.get("self")
            if hasattr(caller, "input_queue") and hasattr(caller, "shutdown_state"):
                self._core = caller
            frame = frame.f_back

    @property
    def found(self) -> bool:
        return self._core is not None

    @property
    def stopping(self) -> bool:
        """It ends its workers first, and is killed when they take long, before it asks its connector to shut down."""
        return self.found and bool(self._core.shutdown_state)

    def wake(self) -> None:
        """As vLLM itself does when a signal comes."""
        from vllm.v1.engine import EngineCoreRequestType

        self._core.input_queue.put_nowait((EngineCoreRequestType.WAKEUP, None))
