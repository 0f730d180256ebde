"""Whether a load is worth it: tokens that the card restores a second, against tokens that the engine prefills a second.

Both are ratios of sums that forget. A card that is busy and completes nothing gets slower with every moment: what is in flight
counts as if it were complete just now, and no more than that. Slower than recomputation by that measure, loads are left
alone but for one now and then, which has as long as recomputation takes; a good one replaces what was known.
"""

from __future__ import annotations

from .backoff import Backoff
from .options import Options

KEEP = 15 / 16
"""What one more sample leaves of those before it."""
EVIDENCE, EVIDENCE_LOADS, EVIDENCE_ALONE = 0.2, 3, 1.0
"""Seconds of work, and loads, before a card is judged, or seconds alone: the first loads pay for what happens once."""
AHEAD = 0.5
"""Seconds of work that the card is given ahead; what else is to be loaded waits on our side."""
PROBE_DEADLINE_MIN = 0.05
PREFILL_MIN, PREFILL_SMALL = 64, 8
"""Tokens of a step from which on it says how fast the engine prefills, or, until there is one, how fast at least."""


class Rate:
    """Tokens a second, of late."""

    def __init__(self) -> None:
        self.tokens = self.seconds = 0.0
        self.samples = 0

    def add(self, tokens: float, seconds: float) -> None:
        self.samples += 1
        self.tokens = KEEP * self.tokens + tokens
        self.seconds = KEEP * self.seconds + seconds

    @property
    def value(self) -> float | None:
        return self.tokens / self.seconds if self.seconds > 0 else None


class Pace:
    """`slow`: loads take longer than recomputation, or nobody answers them."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._prefill, self._at_least, self._restore = Rate(), Rate(), Rate()
        self._step_ended = 0.0
        self._flying: dict[int, int] = {}
        """Tokens of the loads that the card has, by job."""
        self._since = 0.0
        """When the card last completed one, or began after a rest."""
        self._backoff = Backoff(options.probe_s, options.probe_max_s)
        self._probe: int | None = None

    @property
    def prefill(self) -> float | None:
        """Tokens that the engine computes a second, or computes at least, if that is known."""
        return self._options.prefill_tokens_s or self._prefill.value or self._at_least.value

    def listens(self, tokens: int) -> bool:
        """Whether it is worth knowing how long a step of so many tokens takes."""
        return tokens >= (PREFILL_MIN if self._prefill.samples else PREFILL_SMALL)

    @property
    def restore(self) -> float | None:
        return self._restore.value

    @property
    def slow(self) -> bool:
        return self._backoff.failing

    @property
    def pause(self) -> float:
        """Seconds between loads that only try, while `slow`."""
        return self._backoff.pause

    def computed(self, tokens: int, began: float, now: float) -> None:
        """A step of that many tokens, which may have waited for the one before it."""
        rate = self._prefill if tokens >= PREFILL_MIN else self._at_least
        rate.add(tokens, now - max(began, self._step_ended))
        self._step_ended = now

    def verdict(self, tokens: int, now: float) -> str:
        """What to do with a prompt of which the store has that many tokens: `load`, `wait` (ask again), or why neither."""
        flying = sum(self._flying.values())
        self._judge(flying, now)
        if self.slow and (self._flying or not self._backoff.due(now)):
            return "slow"
        rate, prefill = self._restore.value, self.prefill
        if rate and prefill and flying / rate > self._options.load_wait_s + tokens / prefill:
            return "queue"
        if len(self._flying) >= self._options.loads_max or (rate and flying and (flying + tokens) / rate > AHEAD):
            return "wait"
        return "load"

    def _judge(self, flying: int, now: float) -> None:
        if self.slow or not self.prefill:
            return
        seconds = self._restore.seconds + (now - self._since if self._flying else 0.0)
        known = seconds > (EVIDENCE if self._restore.samples >= EVIDENCE_LOADS else EVIDENCE_ALONE)
        at_best = self._restore.tokens + flying
        if known and at_best * self._options.load_margin < self.prefill * seconds:
            self._backoff.failed(now)

    def begun(self, job: int, tokens: int, now: float) -> float:
        """A load goes to the card: the seconds that it may take."""
        if not self._flying:
            self._since = now
        self._flying[job] = tokens
        usual = self._options.deadline(tokens)
        if not self.slow:
            return usual
        self._backoff.begin()
        self._probe = job
        return min(usual, max(PROBE_DEADLINE_MIN, tokens / self.prefill)) if self.prefill else usual

    def ended(self, job: int, tokens: int, seconds: float, now: float) -> None:
        """A load is over: `tokens` are in place after `seconds` of the card's work on it."""
        asked = self._flying.pop(job, None)
        if asked is None:
            return
        self._since = now
        if job != self._probe:
            return self._restore.add(tokens, seconds)
        self._probe = None
        if tokens >= asked and tokens * self._options.load_margin >= seconds * (self.prefill or 0.0):
            self._restore = Rate()
            self._backoff.worked()
        else:
            self._backoff.failed(now)
        self._restore.add(tokens, seconds)

    def late(self, now: float) -> None:
        """A load missed its deadline, or nobody answered it: that is slow, whatever recomputation takes."""
        self._backoff.failed(now)

    def forget(self, job: int, now: float) -> None:
        """A load whose end says nothing of the card's pace, or that has ended before."""
        self._flying.pop(job, None)
        if job == self._probe:
            self._probe = None
            self._backoff.failed(now)
