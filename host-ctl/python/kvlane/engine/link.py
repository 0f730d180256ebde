"""A session that comes back by itself: one warning when the card is away, back-off, and an attach beside the engine's
thread, which never waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from .._kvlane import InputError, KvlaneError

logger = logging.getLogger("vllm.kvlane")


class Link:
    """`session` is a live session or None. Call `lose` when a call on it raised CardGone."""

    def __init__(self, name: str, attach: Callable[[], Any], *, retry: float, retry_max: float) -> None:
        self.name, self._attach = name, attach
        self._retry, self._retry_max = retry, retry_max
        self._pause = retry
        self._next_try = 0.0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._session: Any = None
        self._warned = False
        self._refused = False
        self._closed = False
        self.attaches = 0

    @property
    def session(self) -> Any:
        if self._session is None and not self._refused and not self._closed:
            self._try_beside()
        return self._session

    def connect(self) -> Any:
        """Attaches now, and waits for it: at start."""
        self._try()
        return self._session

    def lose(self, session: Any, error: Exception) -> None:
        """The card is gone, if `session` is still the one that is used."""
        with self._lock:
            if self._session is not session:
                return
            self._session = None
            self._next_try = time.monotonic() + self._pause
        self._warn(error)

    def close(self) -> Any:
        """Gives the session out for closing; no other comes."""
        with self._lock:
            self._closed = True
            session, self._session = self._session, None
        return session

    @property
    def closed(self) -> bool:
        return self._closed

    def join(self, timeout: float) -> None:
        """Waits for an attach that had begun before `close`."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _try_beside(self) -> None:
        if time.monotonic() < self._next_try or (self._thread and self._thread.is_alive()):
            return
        self._thread = threading.Thread(target=self._try, name=f"kvlane-{self.name}", daemon=True)
        self._thread.start()

    def _try(self) -> None:
        try:
            session = self._attach()
        except InputError as error:
            self._refused = True
            logger.error("kvlane: %s: %s. Serving goes on without it.", self.name, error)
            return
        except KvlaneError as error:
            self._next_try = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, self._retry_max)
            self._warn(error)
            return
        with self._lock:
            if not self._closed:
                self._session, session = session, None
        if session is not None:
            session.close(1.0)
            return
        self.attaches += 1
        self._pause, self._warned = self._retry, False
        logger.info("kvlane: %s: attached to %s, which stores %s", self.name, self._session.card, self._session.recipe)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("kvlane: %s: %s. Serving goes on without it; it is tried again by itself.", self.name, error)
