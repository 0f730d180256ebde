"""Which chunks to load and to save, and which pages are held meanwhile. Knows no tensor and no vLLM class.

    asked --lookup--> found --allocated--> loading --> (worker) --> in place, short, or given up
    computed chunks beyond what is found --> saving, pages held --> (worker) --> let go

A look-up is posted once, when the request comes, and answered from here as often as the engine asks. Pages that the card
may still touch are held by a reference count of the engine's own pool: whatever the engine does with the request
(finish, abort, preempt), they come back when every worker has said so, and not before.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import KEY_BYTES
from .._kvlane import CardGone, Geometry, KvlaneError, chunk_keys
from .link import Link
from .options import Options
from .words import Load, Orders, Report, Save

RECENT_MAX = 1 << 16
"""Names of chunks that were saved lately and need no second save."""


@dataclass
class Prompt:
    """What is known of one request."""

    tokens: list[int]
    salt: bytes
    recipe: str = ""
    keys: tuple[bytes, ...] = ()
    chunks: int = 0
    found: int | None = None
    """Leading chunks that every rank has; None: not known yet."""
    answered: bool = False
    """The store said so; else it was given up."""
    lowest: int = 0
    """Of the ranks that have answered."""
    waiting: set[int] = field(default_factory=set)
    asked_at: float = 0.0
    preemptions: int = 0
    loaded: bool = False
    """A load was tried since the last preemption: no second one."""
    job: int | None = None
    pages: list[int] = field(default_factory=list)
    saved: int = 0

    def slice(self, first: int, last: int) -> tuple[bytes, ...]:
        return tuple(keys[first * KEY_BYTES : last * KEY_BYTES] for keys in self.keys)


@dataclass
class Hold:
    pages: Sequence[int]
    workers: int


class Scheduler:
    def __init__(
        self,
        options: Options,
        link: Link,
        *,
        model: str,
        geometry: Geometry,
        page_tokens: int,
        page_count: int,
        ranks: int,
    ) -> None:
        self.options, self.link = options, link
        self.model, self.geometry, self.ranks = model, geometry, ranks
        self._named = model
        self.page_tokens, self.chunk = page_tokens, geometry.chunk_tokens
        self.pages_per_chunk = self.chunk // page_tokens
        self.hold_max = int(options.hold_share * page_count)
        self.hold: Callable[[Sequence[int]], None] | None = None
        self.let_go: Callable[[Sequence[int]], None] = lambda pages: None
        self.unchanged: Callable[[str], bool] = lambda request: True
        """Whether what computes a request's KV is still what it was when the request came."""
        self.stats: Counter[str] = Counter()
        self._prompts: dict[str, Prompt] = {}
        self._lookups: dict[int, str] = {}
        self._lookup_session: Any = None
        self._wait_left = options.lookup_wait_ms / 1e3
        self._quiet_until = 0.0
        self._orders = Orders()
        self._loading: dict[int, Load] = {}
        self._saving: dict[int, Save] = {}
        self._saving_until = 0.0
        self._holds: dict[int, Hold] = {}
        self._held = 0
        self._recent: OrderedDict[bytes, None] = OrderedDict()
        self._job = 0

    # What the engine asks

    def arrived(self, request: str, tokens: Sequence[int], salt: bytes = b"") -> None:
        """A request is here: its look-up starts at once."""
        if request not in self._prompts:
            self._prompts[request] = Prompt(list(tokens), salt)
            self._ask(request)

    def matched(self, request: str, computed: int, total: int, preemptions: int) -> int | None:
        """Tokens beyond `computed` that can be loaded; None: ask again."""
        prompt = self._prompts.get(request)
        if prompt is None or not self.options.load:
            return 0
        if preemptions > prompt.preemptions:
            prompt.preemptions, prompt.loaded = preemptions, False
            self._ask(request)
        if prompt.loaded:
            return 0
        found = self._found(request, prompt)
        if found is None:
            return None
        count = max(0, self._end(found, total) - computed)
        return count if count >= max(1, self.options.min_load_tokens) else 0

    def matched_end(self, request: str, total: int) -> int:
        """Tokens up to which a load of this request reaches."""
        prompt = self._prompts.get(request)
        return self._end(prompt.found or 0, total) if prompt else 0

    def _end(self, found: int, total: int) -> int:
        """The last token is left to compute, and the page that it lies in is the engine's own."""
        return min(found * self.chunk, (total - 1) // self.page_tokens * self.page_tokens)

    def allocated(self, request: str, pages: Sequence[int], computed: int, external: int) -> None:
        """Pages are there. `computed` tokens are the engine's own, `external` behind them are to be loaded."""
        prompt = self._prompts.get(request)
        if prompt is None or external <= 0 or prompt.loaded:
            return
        prompt.loaded = True
        end = computed + external
        first, last = computed // self.chunk, -(-end // self.chunk)
        table = list(pages[first * self.pages_per_chunk : last * self.pages_per_chunk])
        # Under tokens that are left out any page will do: the card does not look at them.
        table += [table[0]] * ((last - first) * self.pages_per_chunk - len(table))
        origin = first * self.chunk
        load = Load(
            job=self._next_job(),
            request=request,
            recipe=prompt.recipe,
            keys=prompt.slice(first, last),
            pages=tuple(table),
            tokens=(computed - origin, end - origin),
            deadline=self.options.deadline(external),
            first_chunk=first,
        )
        prompt.job = load.job
        self._loading[load.job] = load
        self._orders.loads.append(load)

    def scheduled(self, request: str, pages: Sequence[int], replaced: bool, computed: int) -> None:
        """A step will have computed `computed` tokens; `pages` are new, or all of them if `replaced`."""
        prompt = self._prompts.get(request)
        if prompt is None:
            return
        if replaced:
            prompt.pages = []
        prompt.pages.extend(pages)
        if self.options.save and self.hold is not None:
            self._save(request, prompt, computed)

    def orders(self) -> Orders:
        """What the workers do with this step."""
        orders, self._orders = self._orders, Orders()
        self._wait_left = self.options.lookup_wait_ms / 1e3
        return orders

    def finished(self, request: str) -> None:
        prompt = self._prompts.pop(request, None)
        for lookup in prompt.waiting if prompt else ():
            self._lookups.pop(lookup, None)

    def reset(self) -> bool:
        """The engine's weights may be others from now on: everything gets other names, which no other process has, so that
        nothing stored before is served. What is computed already is not saved, and saves on their way keep their old names.
        False while loads of before are on their way: they end in pages that are used."""
        self.model = f"{self._named} epoch={uuid.uuid4().hex}"
        self._recent.clear()
        for request, prompt in self._prompts.items():
            prompt.recipe, prompt.saved = "", 0
            if prompt.pages or prompt.loaded:
                # Its KV is of before, in whole or in part, until it is preempted and computed again.
                self._settle(prompt)
            else:
                self._ask(request)
        return not self._loading

    @property
    def held(self) -> list[int]:
        """Pages that the card may touch, once for each time that they are held."""
        return [page for hold in self._holds.values() for page in hold.pages]

    @property
    def saving(self) -> bool:
        """Saves are in flight: the engine has to go on stepping for their pages to come back. A card that does not answer
        in twice its time does not keep it awake."""
        return bool(self._saving) and time.monotonic() < self._saving_until

    # What the workers say

    def heard(self, report: Report) -> None:
        for job, workers in report.given_up.items():
            self._given_up(job, workers)
        for job, done in report.short.items():
            self._short(job, done)
        for job, done in report.unsaved.items():
            self._unsaved(job, done)
        for job, workers in (report.saved + report.let_go).items():
            self._release(job, workers)

    def received(self, requests: Iterable[str]) -> None:
        """Loads that every worker has ended, well or not."""
        over = set(requests)
        for job in [job for job, load in self._loading.items() if load.request in over]:
            del self._loading[job]

    # Look-ups

    def _ask(self, request: str) -> None:
        prompt = self._prompts[request]
        prompt.found, prompt.answered = None, False
        for lookup in prompt.waiting:
            self._lookups.pop(lookup, None)
        prompt.waiting = set()
        prompt.asked_at = time.monotonic()
        session = self._session()
        if session is None or prompt.asked_at < self._quiet_until or len(prompt.tokens) < self.chunk:
            prompt.found = 0
            return
        if prompt.recipe != session.recipe:
            prompt.recipe = session.recipe
            prompt.keys = tuple(
                chunk_keys(
                    prompt.tokens,
                    model=self.model,
                    geometry=self.geometry,
                    recipe=prompt.recipe,
                    salt=prompt.salt,
                    rank=rank,
                    ranks=self.ranks,
                )
                for rank in range(self.ranks)
            )
            prompt.chunks = len(prompt.keys[0]) // KEY_BYTES
        prompt.lowest = prompt.chunks
        try:
            for keys in prompt.keys:
                lookup = session.lookup(keys)
                self._lookups[lookup] = request
                prompt.waiting.add(lookup)
        except CardGone as error:
            self._lost(session, error)
        except KvlaneError:
            self._give_up(prompt, "lookup_errors")

    def _found(self, request: str, prompt: Prompt) -> int | None:
        self._take(0.0)
        if prompt.found is None and self._wait_left > 0:
            before = time.monotonic()
            while prompt.found is None and time.monotonic() - before < self._wait_left:
                if not self._take(self._wait_left):
                    break
            self._wait_left -= time.monotonic() - before
        if prompt.found is None and time.monotonic() - prompt.asked_at > self.options.lookup_deadline_ms / 1e3:
            self._give_up(prompt, "lookup_timeouts")
            # A card that does not answer is left alone for a while: nobody else waits for it.
            self._quiet_until = time.monotonic() + self.options.retry_max_s / 6
        return prompt.found

    def _take(self, wait: float) -> bool:
        """Takes answers; False when there was none."""
        session, took = self._lookup_session, False
        if session is None or not self._lookups:
            return False
        try:
            done = session.wait(wait) if wait > 0 else session.poll()
            while done is not None:
                took = True
                self._answer(done)
                done = session.poll()
        except CardGone as error:
            self._lost(session, error)
        return took

    def _answer(self, done: Any) -> None:
        prompt = self._prompts.get(self._lookups.pop(done.id, ""))
        if prompt is None or done.id not in prompt.waiting:
            return
        if not done.ok:
            self._give_up(prompt, "lookup_errors")
            return
        prompt.waiting.discard(done.id)
        prompt.lowest = min(prompt.lowest, done.chunks_done)
        if not prompt.waiting:
            prompt.found, prompt.answered = prompt.lowest, True
            # What the store does not have was evicted, whatever we remember of it.
            self._forget(self._split(prompt.slice(prompt.lowest, prompt.chunks)))

    def _forget(self, names: Iterable[bytes]) -> None:
        names = [name for name in names if name in self._recent]
        if names:
            on_the_way = {name for save in self._saving.values() for name in self._split(save.keys)}
            for name in set(names) - on_the_way:
                del self._recent[name]

    def _give_up(self, prompt: Prompt, why: str) -> None:
        self._settle(prompt)
        self.stats[why] += 1

    def _settle(self, prompt: Prompt) -> None:
        """Nothing of this prompt counts as stored, and nothing of it is saved."""
        for lookup in prompt.waiting:
            self._lookups.pop(lookup, None)
        prompt.waiting, prompt.found, prompt.answered = set(), 0, False

    def _session(self) -> Any:
        session = self.link.session
        if session is not self._lookup_session:
            self._lookup_session = session
            for request in list(self._lookups.values()):
                if (prompt := self._prompts.get(request)) and prompt.found is None:
                    self._give_up(prompt, "lookup_errors")
            self._lookups.clear()
        return session

    def _lost(self, session: Any, error: Exception) -> None:
        self.link.lose(session, error)
        self.stats["card_lost"] += 1
        self._session()

    # Saves

    def _save(self, request: str, prompt: Prompt, computed: int) -> None:
        ready = min(computed // self.chunk, prompt.chunks, len(prompt.pages) // self.pages_per_chunk)
        if not prompt.answered or prompt.found is None:
            return
        if ready > prompt.saved and not self.unchanged(request):
            prompt.answered = False
            return
        first = max(prompt.saved, prompt.found)
        names = self._split(prompt.slice(first, ready)) if ready > first else []
        while names and names[0] in self._recent:
            names.pop(0)
            first += 1
        prompt.saved = max(prompt.saved, ready)
        if not names:
            return
        pages = tuple(prompt.pages[first * self.pages_per_chunk : ready * self.pages_per_chunk])
        if len(self._saving) >= self.options.saves_max or self._held + len(pages) > self.hold_max:
            self.stats["save_dropped_chunks"] += len(names)
            return
        save = Save(
            job=self._next_job(),
            request=request,
            recipe=prompt.recipe,
            keys=prompt.slice(first, ready),
            pages=pages,
            deadline=self.options.save_deadline_s,
            first_chunk=first,
        )
        self._hold(save.job, pages, self.ranks)
        self._saving[save.job] = save
        self._saving_until = time.monotonic() + 2 * save.deadline
        self._orders.saves.append(save)
        for name in names:
            self._recent[name] = None
        while len(self._recent) > RECENT_MAX:
            self._recent.popitem(last=False)

    def _unsaved(self, job: int, done: int) -> None:
        """What was not stored may be tried by the next request that has it."""
        if save := self._saving.get(job):
            for name in self._split(save.keys)[done:]:
                self._recent.pop(name, None)

    # Pages

    def _hold(self, job: int, pages: Sequence[int], workers: int) -> None:
        assert self.hold is not None
        self.hold(pages)
        self._holds[job] = Hold(pages, workers)
        self._held += len(pages)

    def _release(self, job: int, workers: int) -> None:
        hold = self._holds.get(job)
        if hold is None:
            return
        hold.workers -= workers
        if hold.workers <= 0:
            del self._holds[job]
            self._saving.pop(job, None)
            self._held -= len(hold.pages)
            self.let_go(hold.pages)

    def _given_up(self, job: int, workers: int) -> None:
        load = self._loading.get(job)
        if job in self._holds:
            self._holds[job].workers += workers
        elif load is not None and self.hold is not None:
            self._hold(job, load.wanted(self.page_tokens), workers)

    def _short(self, job: int, done: int) -> None:
        """A load that ended early: its chunks are saved again once they are recomputed."""
        load = self._loading.get(job)
        prompt = self._prompts.get(load.request) if load else None
        if load is None or prompt is None:
            return
        prompt.found = min(prompt.found or 0, load.first_chunk + done)
        prompt.saved = min(prompt.saved, prompt.found)
        self._forget(self._split(load.keys)[done:])

    def _next_job(self) -> int:
        self._job += 1
        return self._job

    @staticmethod
    def _split(keys: tuple[bytes, ...]) -> list[bytes]:
        return [keys[0][at : at + KEY_BYTES] for at in range(0, len(keys[0]), KEY_BYTES)] if keys else []
