"""Sessions that end beside the engine's thread: until the card has let go of a session's memory it may write there."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import Any

CLOSE_TIMEOUT = 10.0
"""Seconds that a card has to let go of the memory."""


class Closing:
    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="kvlane-close")
        self._closing: dict[Any, Future[bool]] = {}

    def begin(self, session: Any) -> None:
        """Ends a session; once."""
        if session not in self._closing:
            self._closing[session] = self._pool.submit(session.close, CLOSE_TIMEOUT)

    def let_go(self) -> set[Any]:
        """Sessions whose memory nobody touches any more, each said once. One that the card did not let go of is never
        said."""
        over = {session for session, future in self._closing.items() if future.done()}
        ended = {session: self._closing.pop(session) for session in over}
        return {session for session, future in ended.items() if future.exception() is None and future.result()}

    def wait(self, timeout: float) -> None:
        """Waits for sessions that are about to end."""
        wait_for(list(self._closing.values()), timeout)

    def close(self) -> None:
        self._pool.shutdown(wait=True)
