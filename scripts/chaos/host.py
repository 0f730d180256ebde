"""An honest host: stores prompts, fetches them into other pages, and compares every byte that is reported as loaded."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

import kvlane
from tally import Tally

LAYERS, HEADS, HEAD_SIZE, PAGE_TOKENS, CHUNK_TOKENS = 2, 2, 64, 16, 256
ROW = HEADS * HEAD_SIZE * 2
"""Bytes of one token of K or V of a layer."""
PAGE_BYTES = PAGE_TOKENS * ROW
CHUNK_PAGES = CHUNK_TOKENS // PAGE_TOKENS
PROMPTS, CHUNKS = 8, 4
"""Prompts, and chunks of the longest of them."""
PLACES = 6
"""Fetches in flight."""
PAGES = (PROMPTS + PLACES) * CHUNKS * CHUNK_PAGES
PLANE = PAGES * PAGE_BYTES
GEOMETRY = kvlane.Geometry(LAYERS, HEADS, HEAD_SIZE, "bf16", CHUNK_TOKENS)
FORM = kvlane.Form("token-major", PAGE_TOKENS, PAGES, PAGE_BYTES, ROW, HEAD_SIZE * 2)
POISON = 0xAB

DEADLINE = 2.0
"""Seconds of a request, unless a scenario says otherwise."""
SLACK = 0.1
"""Seconds behind its deadline at which an answer is late: 50 ms, and 50 ms more on two busy cores."""
HANG = 10.0
"""Seconds behind its deadline at which nobody waits any longer."""


@dataclass
class Prompt:
    """A prompt, its pages in the source part, and what is known of it."""

    index: int
    chunks: int
    keys: bytes
    acknowledged: int = 0
    """Leading chunks that a card has said it stored."""
    harmed: bool = False
    """Damaged at rest by us, or given up with its server: it may be missed, and never be wrong."""

    @property
    def pages(self) -> list[int]:
        first = self.index * CHUNKS * CHUNK_PAGES
        return list(range(first, first + self.chunks * CHUNK_PAGES))


@dataclass
class Flight:
    """A request that has not been answered."""

    prompt: Prompt
    operation: str
    deadline: float
    """Seconds."""
    place: int | None = None
    """Of a fetch's pages."""


@dataclass
class Host:
    """`model` separates its chunks from those of other scenarios."""

    socket: str
    model: str
    seed: int
    tally: Tally
    prompts: list[Prompt] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)
        pool = self._dice.randbytes(1 << 16)
        self._data = [bytearray(2 * PLANE) for _ in range(LAYERS)]
        sources = PROMPTS * CHUNKS * CHUNK_PAGES
        for data in self._data:
            for half in (0, 1):
                for page in range(sources):
                    at = half * PLANE + page * PAGE_BYTES
                    start = self._dice.randrange(len(pool) - PAGE_BYTES)
                    # Half of it repeats, so that some blocks shrink and some do not.
                    fill = pool[start : start + PAGE_BYTES] if page % 3 else bytes(PAGE_BYTES)
                    data[at : at + PAGE_BYTES] = fill
        for index in range(PROMPTS):
            chunks = self._dice.randrange(1, CHUNKS + 1)
            tokens = [self._dice.randrange(50_000) for _ in range(chunks * CHUNK_TOKENS)]
            keys = kvlane.chunk_keys(tokens, model=self.model, geometry=GEOMETRY, recipe="lossless")
            self.prompts.append(Prompt(index, chunks, keys))
        self._session: kvlane.Session | None = None
        self._flights: dict[int, Flight] = {}
        self._places = list(range(PLACES))

    # The session

    def attach(self, timeout: float = 10.0) -> None:
        memory = kvlane.register(GEOMETRY, self._data, FORM)
        self._session = kvlane.attach(memory, socket=self.socket, recipe="lossless", client="chaos", timeout=timeout)

    def leave(self) -> None:
        """Gives the session up, and all that is in flight with it."""
        session, self._session = self._session, None
        self._flights.clear()
        self._places = list(range(PLACES))
        if session is not None:
            session.close(5.0)

    def move(self, socket: str) -> None:
        """Goes to another card of the same store."""
        self.leave()
        self.socket = socket
        self.attach()

    # Requests

    def post(self, prompt: Prompt, operation: str, deadline: float = DEADLINE) -> None:
        if self._session is None:
            raise RuntimeError("the session was given up: a request was not answered")
        if operation == "store":
            number = self._session.store(prompt.keys, prompt.pages, deadline=deadline)
            self._flights[number] = Flight(prompt, operation, deadline)
        elif operation == "lookup":
            self._flights[self._session.lookup(prompt.keys)] = Flight(prompt, operation, deadline)
        elif self._places:
            place = self._places.pop()
            pages = self._pages(place)[: prompt.chunks * CHUNK_PAGES]
            self._poison(pages)
            number = self._session.fetch(prompt.keys, pages, deadline=deadline)
            self._flights[number] = Flight(prompt, operation, deadline, place)
        self.tally.requests += 1

    def burst(self, count: int, deadline: float = DEADLINE, stores: float = 0.3) -> None:
        """Posts so many requests of any prompts: a share of them stores, the others fetches."""
        for _ in range(count):
            operation = "store" if self._dice.random() < stores else "fetch"
            self.post(self._dice.choice(self.prompts), operation, deadline)

    def settle(self, measured: bool = True) -> list[kvlane.Completion]:
        """Takes all answers and checks them. `measured`: the card can answer, so it has to, in time."""
        assert self._session is not None
        answers = []
        while self._flights:
            longest = max(flight.deadline for flight in self._flights.values())
            completion = self._session.wait(longest + HANG)
            if completion is None:
                self.tally.wrong("hangs", len(self._flights), f"{[f.operation for f in self._flights.values()]} unanswered")
                self.leave()
                break
            answers.append(completion)
            self._check(self._flights.pop(completion.id), completion, measured)
        return answers

    def _check(self, flight: Flight, completion: kvlane.Completion, measured: bool) -> None:
        late = completion.elapsed_seconds - flight.deadline
        if measured and flight.operation != "lookup":
            self.tally.lateness = max(self.tally.lateness, late)
            if late > SLACK:
                self.tally.wrong("late", 1, f"{flight.operation} answered {late * 1e3:.0f} ms behind its deadline")
        if flight.operation == "store":
            # What is not stored now has not gone: only an answer that names more changes what is known.
            flight.prompt.acknowledged = max(flight.prompt.acknowledged, completion.chunks_done)
            if completion.ok and completion.chunks_done == flight.prompt.chunks:
                flight.prompt.harmed = False
        if flight.place is not None:
            self._compare(flight.prompt, flight.place, completion.chunks_done)
            self._places.append(flight.place)

    def _compare(self, prompt: Prompt, place: int, chunks: int) -> None:
        self.tally.chunks += chunks
        count = chunks * CHUNK_PAGES
        bad = 0
        for source, target in zip(prompt.pages[:count], self._pages(place)):
            for data in self._data:
                for half in (0, PLANE):
                    a, b = half + source * PAGE_BYTES, half + target * PAGE_BYTES
                    bad += data[a : a + PAGE_BYTES] != data[b : b + PAGE_BYTES]
        self.tally.wrong("wrong", bad, f"pages of prompt {prompt.index}, {chunks} chunks reported")

    @staticmethod
    def _pages(place: int) -> list[int]:
        first = (PROMPTS + place) * CHUNKS * CHUNK_PAGES
        return list(range(first, first + CHUNKS * CHUNK_PAGES))

    def _poison(self, pages: list[int]) -> None:
        for data in self._data:
            for page in pages:
                for half in (0, PLANE):
                    at = half + page * PAGE_BYTES
                    data[at : at + PAGE_BYTES] = bytes([POISON]) * PAGE_BYTES

    # What a scenario begins and ends with

    def fill(self) -> None:
        """Stores all prompts, in peace."""
        for prompt in self.prompts:
            self.post(prompt, "store", 20.0)
        self.settle()
        missing = [prompt.index for prompt in self.prompts if prompt.acknowledged < prompt.chunks]
        if missing:
            raise RuntimeError(f"prompts {missing} were not stored without any fault")

    def take_over(self, other: Host) -> None:
        """Has the prompts of another host: the same tokens, pages and acknowledgements."""
        for mine, theirs in zip(self._data, other._data):
            mine[:] = theirs
        self.prompts = other.prompts

    def forget(self) -> None:
        """What was stored is gone with its server."""
        for prompt in self.prompts:
            prompt.acknowledged, prompt.harmed = 0, False

    def read_back(self, patience: float = 30.0) -> None:
        """Without faults again, everything acknowledged is there. A store that is given a rest is waited for."""
        give_up = time.monotonic() + patience
        for prompt in self.prompts:
            if prompt.harmed:
                self.post(prompt, "fetch", 10.0)
                self.settle()
                continue
            while True:
                self.post(prompt, "fetch", 10.0)
                (answer,) = self.settle() or (None,)
                if answer is None:
                    return
                if answer.chunks_done >= prompt.acknowledged:
                    break
                if time.monotonic() > give_up:
                    short = prompt.acknowledged - answer.chunks_done
                    self.tally.wrong("lost", short, f"prompt {prompt.index} of {prompt.acknowledged}: {answer.status}")
                    break
                time.sleep(0.2)
