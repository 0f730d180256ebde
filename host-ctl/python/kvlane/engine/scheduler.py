"""Which chunks to load and to save, and which pages are held meanwhile. Knows no tensor and no vLLM class.

    asked --lookups--> found --pace, allocated--> loading --> (worker) --> in place, short, or given up
    computed chunks beyond what is found --> saving, pages held --> (worker) --> let go

A request is looked up once, when it comes (lookups.py), and answered from here as often as the engine asks. Whether its
load is worth it is decided when the engine could begin it (pace.py), and few are with the card at once. Pages that the
card may still touch are held (holds.py).
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from .. import KEY_BYTES
from .events import Events
from .faults import Faults
from .holds import Holds
from .idle import Idle
from .link import Link
from .lookups import SILENT, Lookups, Question
from .options import Options
from .pace import Pace
from .prompts import Prompt, parts
from .saves import NO_FAULT, Saves
from .sections import FULL, NO_PAGE, STATE, Section
from .words import Load, Orders, Report, Save, split

LATE = ("deadline_exceeded", "given_up")
"""Ends of loads that took too long."""
DAMAGED = "corrupt"
"""How a load ends of which the store has something else than was stored."""
SLOW = "loads"
"""What a store that takes longer than recomputation is called in the log."""


class Scheduler:
    def __init__(
        self,
        options: Options,
        link: Link,
        *,
        model: str,
        sections: Sequence[Section],
        page_count: int,
        ranks: int,
        replicas: int = 1,
        whole_only: bool = False,
    ) -> None:
        """`replicas`: consecutive ranks with equal bytes. One of them saves, under a key that all of them load.
        `whole_only`: the engine cannot prefill behind a prefix, so what a load leaves may be one token."""
        options = _shared(options, len(sections))
        self.options, self.link = options, link
        self.model, self.sections = model, sections
        self.ranks, self.savers = ranks, ranks // replicas
        self._named, self._whole_only = model, whole_only
        self.chunk, self.page_tokens = sections[0].chunk, max(section.page_tokens for section in sections)
        self._whole = all(section.kind == FULL for section in sections)
        self.hold_max = int(options.hold_share * page_count)
        self.holds = Holds()
        self.unchanged: Callable[[str], bool] = lambda request: True
        """Whether what computes a request's KV is still what it was when the request came."""
        self.stats: Counter[str] = Counter()
        self.faults = Faults()
        self.events = Events()
        self._lookups = Lookups(options, link, self._looked_up, self.faults)
        self._pace = Pace(options)
        self._saves = Saves(options, self.stats, self.faults)
        self._prompts: dict[str, Prompt] = {}
        self._wait_left = options.lookup_wait_ms / 1e3
        self.idle = Idle(options.idle_wait_ms / 1e3, options.idle_wait_max_s)
        self._orders = Orders()
        self._step = 0
        self._steps: dict[int, tuple[int, float]] = {}
        """Tokens of steps under way, and when they were ordered."""
        self._loading: dict[int, Load] = {}
        self._job = 0

    # What the engine asks

    def arrived(
        self,
        request: str,
        tokens: Sequence[int],
        salt: bytes = b"",
        extras: Sequence[bytes] = (),
        known: Sequence[int] = (),
    ) -> None:
        """A request is here: its look-up starts at once. `extras` say of each chunk what its tokens do not; `known` are
        the tokens and those of the answer, as it grows."""
        if request not in self._prompts:
            known = known if self.options.save_answers else ()
            self._prompts[request] = Prompt(list(tokens), salt, list(extras), known, saved=[0] * len(self.sections))
            self._ask(request)

    def matched(self, request: str, computed: int, total: int, preemptions: int) -> int | None:
        """Tokens beyond `computed` that can be loaded; None: ask again."""
        prompt = self._prompts.get(request)
        if prompt is None or not self.options.load:
            return 0
        if preemptions > prompt.preemptions:
            prompt.preemptions, prompt.loaded, prompt.tables = preemptions, False, []
            self._ask(request)
        if prompt.loaded:
            return 0
        found = self._found(prompt)
        if found is None:
            return None
        count = max(0, self._end(found, total) - computed)
        if not count or (self._whole_only and total - computed - count != 1):
            return 0
        verdict = "short" if count < self.options.min_load_tokens else self._verdict(count)
        if verdict == "load":
            return count
        if verdict == "wait":
            return None
        prompt.loaded = True
        self.stats[f"not_loaded_{verdict}"] += 1
        return 0

    def _verdict(self, tokens: int) -> str:
        if self._lookups.silent:
            return "silent"
        verdict = self._pace.verdict(tokens, time.monotonic())
        if verdict == "slow" and not self.faults.more(SLOW):
            rate, prefill = self._pace.restore or 0.0, self._pace.prefill or 0.0
            what = f"{rate:.0f} tokens a second from the store, {prefill:.0f} by recomputation"
            if not prefill or rate >= prefill:
                what = "not in time"
            self.faults.seen(SLOW, f"{what}: prompts are computed, and from time to time one load tries", lasting=True)
        return verdict

    def matched_end(self, request: str, total: int) -> int:
        """Tokens up to which a load of this request reaches."""
        prompt = self._prompts.get(request)
        return self._end(prompt.found or 0, total) if prompt else 0

    def _end(self, found: int, total: int) -> int:
        """The last token is left to compute, and the page that it lies in is the engine's own. Windows and states are
        kept for the ends of chunks only."""
        if not self._whole:
            return min(found, (total - 1) // self.chunk) * self.chunk
        return min(found * self.chunk, (total - 1) // self.page_tokens * self.page_tokens)

    def allocated(self, request: str, tables: Sequence[Sequence[int]], computed: int, external: int) -> None:
        """Pages are there. `computed` tokens are the engine's own, `external` behind them are to be loaded."""
        prompt = self._prompts.get(request)
        if prompt is None or external <= 0 or prompt.loaded:
            return
        prompt.loaded = True
        job = self._job + 1
        self._job += len(self.sections)
        load = Load(
            job=job,
            request=request,
            recipe=prompt.recipe,
            deadline=self._pace.begun(job, external, time.monotonic()),
            tokens=external,
            parts=parts(job, prompt, self.sections, tables, computed, computed + external),
        )
        prompt.job = load.job
        self._loading[load.job] = load
        self._orders.loads.append(load)

    def saving(self, request: str, computed: int) -> bool:
        """Whether the tables are needed of a step that will have computed `computed` tokens: it is the first, or
        completes what is to be saved."""
        prompt = self._prompts.get(request)
        if prompt is None or not self.options.save:
            return False
        whole = prompt.whole(computed, self.chunk)
        attention = (at for at, section in enumerate(self.sections) if section.kind != STATE)
        return not prompt.tables or any(prompt.saved[at] < whole for at in attention)

    def scheduled(self, request: str, tables: Sequence[Sequence[int]], replaced: bool, computed: int) -> None:
        """A step will have computed `computed` tokens; `tables` are each group's new pages, or all of them if
        `replaced`."""
        prompt = self._prompts.get(request)
        if prompt is None:
            return
        if replaced or not prompt.tables:
            prompt.tables = [list(pages) for pages in tables]
        else:
            for mine, pages in zip(prompt.tables, tables):
                mine.extend(pages)
        if self._may_save(prompt):
            self._save(request, prompt, prompt.whole(computed, self.chunk))

    def bounded(self, request: str, group: int, page: int, tokens: int) -> None:
        """When this step has run `page` will hold the state of the first `tokens` of prompt and answer."""
        prompt = self._prompts.get(request)
        if prompt is None or tokens % self.chunk or page == NO_PAGE or not self._may_save(prompt):
            return
        chunk, last = tokens // self.chunk - 1, max(prompt.chunks, len(prompt.known) // self.chunk)
        for index, section in enumerate(self.sections):
            if section.kind == STATE and section.group == group and prompt.stored[index] <= chunk < last:
                if not self.unchanged(request):
                    prompt.answered = False
                    return
                prompt.reach(chunk + 1, self.model, self.sections, self.savers)
                prompt.saved[index] = max(prompt.saved[index], chunk + 1)
                self._begin_save(request, prompt, index, chunk, [page])

    def orders(self, tokens: int = 1) -> Orders:
        """What the workers do with this step, which computes that many tokens."""
        self._lookups.pump()
        self.faults.sweep()
        orders, self._orders = self._orders, Orders()
        self._wait_left = self.options.lookup_wait_ms / 1e3
        if self._pace.listens(tokens):
            self._step += 1
            orders.step = self._step
            self._steps[self._step] = (tokens, time.monotonic())
        (self.idle.active if tokens else self.idle.looked)(time.monotonic())
        orders.wait = self.options.idle_wait_ms / 1e3 if not tokens and (self._loading or self.holds) else 0.0
        return orders

    def finished(self, request: str, tables: Sequence[Sequence[int]] = (), computed: int = 0) -> None:
        """It is over, with `tables` that are still its own and name `computed` tokens: what is whole of its answer is
        saved. Nothing where no step has run since it came or was preempted: its pages may wait for a load."""
        prompt = self._prompts.pop(request, None)
        if prompt is None:
            return
        self._lookups.drop(request)
        if prompt.known and prompt.tables and tables and self._may_save(prompt):
            prompt.tables = [list(pages) for pages in tables]
            self._save(request, prompt, prompt.whole(computed, self.chunk))

    def reset(self) -> bool:
        """The engine's weights may be others from now on: everything gets other names, which no other process has, so
        that nothing stored before is served. What is computed already is not saved, and saves on their way keep their
        old names. False while loads of before are on their way: they end in pages that are used."""
        self.model = f"{self._named} epoch={uuid.uuid4().hex}"
        self._saves.reset()
        self.events.reset()
        for request, prompt in self._prompts.items():
            prompt.recipe, prompt.saved = "", [0] * len(self.sections)
            if prompt.tables or prompt.loaded:
                # Its KV is of before, in whole or in part, until it is preempted and computed again.
                self._settle(request, prompt)
            else:
                self._ask(request)
        return not self._loading

    @property
    def pending(self) -> bool:
        """The card has yet to let go of pages, or to answer at all: an idle engine looks for it now and then
        (`idle`)."""
        self._lookups.pump()
        return bool(self.holds) or self._lookups.silent

    # What the workers say

    def heard(self, report: Report) -> None:
        now = time.monotonic()
        self._lookups.pump()
        if report:
            self.idle.active(now)
        if report.step:
            self._stepped(report.step, now)
        for job, (tokens, seconds) in report.restored.items():
            self._restored(job, tokens, seconds, now)
        for job, why in report.failed.items():
            self._failed(job, why, now)
        for job, workers in report.given_up.items():
            self._given_up(job, workers, now)
        for job, done in report.short.items():
            self._short(job, done, report.failed)
        for job, done in report.unsaved.items():
            self._saves.unsaved(job, done)
            self.events.unsaved(job, done)
        for job, workers in (report.saved + report.let_go).items():
            if self.holds.release(job, workers):
                self._saves.over(job)
                self.events.over(job)

    def received(self, requests: Iterable[str]) -> None:
        """Loads that every worker has ended, well or not."""
        over = set(requests)
        for job in [job for job, load in self._loading.items() if load.request in over]:
            del self._loading[job]
            self._pace.forget(job, time.monotonic())

    def _stepped(self, step: int, now: float) -> None:
        for number in [number for number in self._steps if number <= step]:
            tokens, began = self._steps.pop(number)
            if number == step:
                self._pace.computed(tokens, began, now)

    def _restored(self, job: int, tokens: int, seconds: float, now: float) -> None:
        self._pace.ended(job, tokens, seconds, now)
        if not self._pace.slow:
            self.faults.over(SLOW)

    def _failed(self, job: int, why: str, now: float) -> None:
        if not self._saves.failed(job, why) and why not in NO_FAULT:
            if why in LATE:
                self._pace.late(now)
            self.faults.seen(f"{SLOW} {why}", "prompts whose prefix could not be loaded are computed")

    # Look-ups

    def _ask(self, request: str) -> None:
        prompt = self._prompts[request]
        prompt.found, prompt.answered = None, False
        session = self._lookups.session()
        short = len(prompt.tokens) < self.chunk
        if session is None or self._lookups.silent or (short and not prompt.known):
            prompt.found = 0
            if not short:
                self.stats["not_loaded_away" if session is None else "not_loaded_silent"] += 1
                self.faults.more(SILENT)
            return
        if prompt.recipe != session.recipe:
            prompt.recipe = session.recipe
            prompt.name(self.model, self.sections, self.savers)
        asked = self._asked(prompt)
        if not asked:
            prompt.found, prompt.answered = 0, True
            prompt.stored = [0] * len(self.sections)
            return
        self._lookups.ask(
            request,
            [
                Question(keys[: asked * KEY_BYTES], index, section.trailing)
                for index, section in enumerate(self.sections)
                for keys in prompt.keys[index]
            ],
        )

    def _asked(self, prompt: Prompt) -> int:
        """Chunks that the store is asked for."""
        return prompt.chunks if self._whole else (len(prompt.tokens) - 1) // self.chunk

    def _looked_up(self, request: str, chunks: int | None, why: str, each: Sequence[int]) -> None:
        prompt = self._prompts.get(request)
        if prompt is None:
            return
        prompt.found, prompt.answered = chunks or 0, chunks is not None
        if chunks is None:
            self.stats["not_loaded_silent" if why == "silent" else why] += 1
            return
        prompt.stored = [min(each[at : at + self.savers]) for at in range(0, len(each), self.savers)]
        # What the store does not have was evicted, whatever we remember of it.
        for index, stored in enumerate(prompt.stored):
            self._saves.forget(split(prompt.slice(index, stored, prompt.chunks)))
            self.events.lost(split(prompt.slice(index, stored, self._asked(prompt))))

    def _found(self, prompt: Prompt) -> int | None:
        if prompt.found is None:
            self._lookups.pump()
        if prompt.found is None and self._wait_left > 0:
            before = time.monotonic()
            while prompt.found is None and time.monotonic() - before < self._wait_left:
                if not self._lookups.wait(self._wait_left):
                    break
            self._wait_left -= time.monotonic() - before
        return prompt.found

    def _settle(self, request: str, prompt: Prompt) -> None:
        """Nothing of this prompt counts as stored, and nothing of it is saved."""
        self._lookups.drop(request)
        prompt.found, prompt.answered = 0, False

    # Saves

    def _may_save(self, prompt: Prompt) -> bool:
        return self.options.save and self.holds.hold is not None and prompt.answered and prompt.found is not None

    def _save(self, request: str, prompt: Prompt, whole: int) -> None:
        for index, section in enumerate(self.sections):
            table = prompt.tables[section.group]
            ready = min(whole, len(table) * section.page_tokens // self.chunk)
            if section.kind == STATE or ready <= prompt.saved[index]:
                continue
            if not self.unchanged(request):
                prompt.answered = False
                return
            prompt.reach(ready, self.model, self.sections, self.savers)
            first = max(prompt.saved[index], prompt.stored[index])
            prompt.saved[index] = ready
            if first < ready:
                first = section.kept(table, first, ready)
                pages = [table[place] for place in section.places(first, ready)]
                self._begin_save(request, prompt, index, first, pages)

    def _begin_save(self, request: str, prompt: Prompt, index: int, first: int, pages: list[int]) -> None:
        """Saves chunks of a section from `first` on, as many as there are pages, but for those that have just been
        saved."""
        per_chunk = self.sections[index].pages_per_chunk
        last = first + len(pages) // per_chunk
        names = self._saves.missing(split(prompt.slice(index, first, last)))
        pages = pages[len(pages) - len(names) * per_chunk :]
        if not names or not self._saves.may(len(names), self.holds.count + len(pages), self.hold_max):
            return
        first = last - len(names)
        save = Save(
            job=self._next_job(),
            request=request,
            recipe=prompt.recipe,
            keys=prompt.slice(index, first, last),
            pages=tuple(pages),
            deadline=self.options.save_deadline_s,
            first_chunk=first,
            section=index,
        )
        self.holds.add(save.job, save.pages, self.savers)
        self._saves.begin(save, names)
        self.events.begun(save)
        self._orders.saves.append(save)

    # Loads that went wrong

    def _given_up(self, job: int, workers: int, now: float) -> None:
        load = self._loading.get(job)
        if load is not None and not self._lookups.silent:
            # Before anybody else waits for this card, it shows that it is there.
            self._lookups.suspect(load.parts[0].keys[0], "a load was not answered", now)
        if load is not None or job in self.holds:
            self.holds.add(job, self._written(load) if load else (), workers)

    def _written(self, load: Load) -> list[int]:
        pages = {page: None for part in load.parts for page in part.wanted(self.sections[part.section].page_rows)}
        return list(pages)

    def _short(self, job: int, done: int, failed: Mapping[int, str]) -> None:
        """A part of a load that ended early: its chunks are saved again once they are recomputed. Those of a load that
        did not fail, or was damaged, are gone."""
        found = next(((load, part) for load in self._loading.values() for part in load.parts if part.job == job), None)
        prompt = self._prompts.get(found[0].request) if found else None
        if found is None or prompt is None:
            return
        part, end = found[1], found[1].first_chunk + done
        prompt.found = min(prompt.found or 0, end)
        prompt.stored[part.section] = min(prompt.stored[part.section], end)
        prompt.saved[part.section] = min(prompt.saved[part.section], end)
        self._saves.forget(split(part.keys)[done:])
        if failed.get(found[0].job) in (None, DAMAGED):
            self.events.lost(split(part.keys)[done:])

    def _next_job(self) -> int:
        self._job += 1
        return self._job


LOADS_AT_ONCE, SAVES_AT_ONCE = 16, 12
"""Commands of a model with several sections that the card has at once: of the 28 that a session has room for."""


def _shared(options: Options, sections: int) -> Options:
    """A load is a command for each section, and so are saves: with several, fewer of them are with the card at once."""
    if sections == 1:
        return options
    loads, saves = (max(2, commands // sections) for commands in (LOADS_AT_ONCE, SAVES_AT_ONCE))
    return replace(options, loads_max=min(options.loads_max, loads), saves_max=min(options.saves_max, saves) * sections)
