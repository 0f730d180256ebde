"""The faults. Each scenario has a directory and dice of its own, sets its processes up, and ends with everything read back."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from disk import Disk
from host import DEADLINE, Host
from processes import Card, Process, Server
from proxy import Proxy
from tally import Tally
from versions import Pair

P = TypeVar("P", bound=Process)


class Skipped(Exception):
    """What a scenario needs is not here; the text says what."""


@dataclass
class Stage:
    """What a scenario works with; ends its processes when it goes."""

    directory: Path
    seed: int
    old: str | None = None
    """Directory of an older dpu-app and host-ctl, where the caller has one."""
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self._ends = ExitStack()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def keep(self, process: P) -> P:
        self._ends.callback(process.end, signal.SIGTERM)
        return process

    def card(self, name: str = "card", *flags: str, program: str = "dpu-app", **environment: str) -> Card:
        return self.keep(Card(self.directory, name, *flags, program=program, **environment))

    def server(self, name: str = "redis") -> Server:
        return self.keep(Server(self.directory, name))

    def host(self, card: Card, name: str = "m", attach: bool = True) -> Host:
        host = Host(card.socket, f"{self.directory.name}-{name}", self.dice.randrange(1 << 30), self.tally)
        self._ends.callback(host.leave)
        if attach:
            host.attach()
        return host

    def proxy(self, port: int, share: float = 1.0, same: bool = False) -> Proxy:
        proxy = Proxy(port, self.dice.randrange(1 << 30), share, same)
        self._ends.callback(proxy.close)
        return proxy

    def files(self, root: str = "store") -> dict[Path, bytes]:
        """Chunk files of a `dir:` store, and what is in them."""
        return {path: path.read_bytes() for path in sorted((self.directory / root).glob("??/*")) if path.is_file()}

    def gone(self, before: set, after: set, what: str) -> None:
        """Counts good chunks that were there and are not."""
        missing = before - after
        self.tally.wrong("deleted", len(missing), f"{what}: {sorted(map(str, missing))[:3]}")


SCENARIOS: dict[str, Callable[[Stage], None]] = {}


def scenario(run: Callable[[Stage], None]) -> Callable[[Stage], None]:
    SCENARIOS[run.__name__.replace("_", "-")] = run
    return run


def one_of_the_stores(stage: Stage) -> str:
    """URL of a store that a killed card leaves as it is."""
    directory = stage.directory / "store"
    if stage.dice.random() < 0.5:
        return f"dir:{directory}"
    server = stage.server()
    server.start()
    return server.url if stage.dice.random() < 0.5 else f"tiers:dram=4M,dir:{stage.directory / 't1'}=16M,{server.url}"


@scenario
def kill_card(stage: Stage) -> None:
    """A card is killed at random, and started again over the same store."""
    store = one_of_the_stores(stage)
    card = stage.card()
    card.start(store)
    host = stage.host(card)
    host.fill()
    for _ in range(3):
        host.burst(8)
        time.sleep(stage.dice.random() * 0.05)
        card.end(signal.SIGKILL)
        stage.tally.fault("card killed")
        host.leave()
        card.start(store)
        host.attach()
    host.read_back()


@scenario
def freeze_card(stage: Stage) -> None:
    """A card stands still under requests and goes on: whatever it then answers is true."""
    card = stage.card()
    card.start(one_of_the_stores(stage))
    host = stage.host(card)
    host.fill()
    for _ in range(2):
        host.burst(8)
        card.freeze()
        stage.tally.fault("card frozen")
        time.sleep(0.2 + stage.dice.random() * 0.5)
        card.thaw()
        host.settle(measured=False)
    host.read_back()


@scenario
def freeze_store(stage: Stage) -> None:
    """A server stands still for longer than requests may take: each is answered in time."""
    server = stage.server()
    server.start()
    card = stage.card()
    card.start(server.url)
    host = stage.host(card)
    host.fill()
    for _ in range(2):
        server.freeze()
        stage.tally.fault("store frozen")
        host.burst(6, deadline=0.3 + stage.dice.random() * 0.7)
        host.settle()
        server.thaw()
        host.burst(4)
        host.settle()
    host.read_back()


@scenario
def hanging_disk(stage: Stage) -> None:
    """Each read of a directory hangs: fetches are answered in time, look-ups and stores go on, and nothing is lost."""
    if lacks := Disk.lacks():
        raise Skipped(lacks)
    root = stage.directory / "store"
    disk = Disk(stage.directory, root)
    card = stage.card(**disk.environment)
    card.start(f"dir:{root}")
    host, other = stage.host(card), stage.host(card, "other")
    host.fill()
    for _ in range(2):
        before = set(stage.files())
        disk.freeze()
        stage.tally.fault("disk hung")
        host.burst(6, stores=0, deadline=0.3 + stage.dice.random() * 0.7)
        for prompt in other.prompts:
            other.post(prompt, "store")
            other.post(prompt, "lookup")
        host.settle()
        other.settle()
        for prompt in host.prompts:
            host.post(prompt, "lookup")
        for answer in host.settle():
            if answer.elapsed_seconds > DEADLINE:
                stage.tally.wrong("late", 1, f"a look-up waited {answer.elapsed_seconds:.1f} s for a disk that hangs")
        disk.thaw()
        host.burst(4)
        host.settle()
        stage.gone(before, set(stage.files()), "files on a disk that hung")
    host.read_back()
    other.fill()
    other.read_back()


@scenario
def kill_store(stage: Stage) -> None:
    """A server is not there when the card starts, comes, is killed, and comes back empty."""
    server = stage.server()
    card = stage.card()
    card.start(server.url)
    host = stage.host(card)
    host.burst(4)
    host.settle()
    host.forget()
    for _ in range(2):
        server.start()
        until = time.monotonic() + 40.0
        while not all(prompt.acknowledged == prompt.chunks for prompt in host.prompts):
            if time.monotonic() > until:
                stage.tally.wrong("hangs", 1, "a card does not find its store again")
                return
            for prompt in host.prompts:
                host.post(prompt, "store")
            host.settle()
        host.read_back()
        host.burst(6)
        server.end(signal.SIGKILL)
        stage.tally.fault("store killed")
        host.settle()
        host.forget()
        host.burst(4)
        host.settle()


@scenario
def flip_at_rest(stage: Stage) -> None:
    """Bits flip in files of the store and of a tier, and files are cut: what is bad is missed, what is good stays."""
    tiers = stage.dice.random() < 0.5
    store = f"dir:{stage.directory / 'store'}"
    url = f"tiers:dram=4M,dir:{stage.directory / 't1'}=16M,{store}" if tiers else store
    card = stage.card()
    card.start(url)
    host = stage.host(card)
    host.fill()
    if tiers:
        host.burst(12, stores=0)
        host.settle()
    host.leave()
    card.end(signal.SIGTERM)
    harmed = set()
    for root in ("store", "t1") if tiers else ("store",):
        for path, content in stage.files(root).items():
            if stage.dice.random() < 0.4 and content:
                bad = bytearray(content)
                if stage.dice.random() < 0.8:
                    bad[stage.dice.randrange(len(bad))] ^= 1 << stage.dice.randrange(8)
                else:
                    del bad[len(bad) // 2 :]
                path.write_bytes(bad)
                harmed.add(path)
                stage.tally.fault("file damaged")
    # Which prompt a file is of its name does not tell us.
    for prompt in host.prompts:
        prompt.harmed = True
    good = set(stage.files()) - harmed
    card.start(url)
    host.attach()
    for _ in range(3):
        for prompt in host.prompts:
            host.post(prompt, "fetch")
            host.settle()
    stage.gone(good, set(stage.files()), "undamaged files")
    for _ in range(3):
        for prompt in host.prompts:
            host.post(prompt, "store")
            host.settle()
            host.post(prompt, "fetch")
            host.settle()
    host.read_back()


@scenario
def bad_path(stage: Stage) -> None:
    """What lies between a card and a shared server flips bits, anywhere or always the same: nobody's chunks are deleted."""
    server = stage.server()
    server.start()
    good = stage.card("good")
    good.start(server.url)
    host = stage.host(good)
    host.fill()
    before = server.chunks()
    paths = {
        "bit flipped on the way": stage.proxy(server.port, stage.dice.choice([1.0, 0.3])),
        "same bit flipped on the way": stage.proxy(server.port, same=True),
    }
    for number, (fault, proxy) in enumerate(paths.items()):
        bad = stage.card(f"bad-{number}")
        bad.start(proxy.url)
        host.move(bad.socket)
        for _ in range(4):
            host.burst(6, stores=0)
            host.settle()
        stage.tally.fault(fault, proxy.flips)
        stage.gone(before, server.chunks(), "chunks of the server")
    host.move(good.socket)
    host.read_back()


@scenario
def lying_engines(stage: Stage) -> None:
    """Engines fail, refuse, flip what they inflate and answer in any order: the chunks are good, and stay."""
    card = stage.card()
    store = f"dir:{stage.directory / 'store'}"
    card.start(store)
    host = stage.host(card)
    host.fill()
    before = set(stage.files())
    for faults in ("corrupt=0.3", "fail=0.1", "again=0.5", "reorder=1,delay_us=2000", "fail=0.02,corrupt=0.1,again=0.2"):
        host.leave()
        card.end(signal.SIGTERM)
        card.start(store, emulator=f"{faults},seed={stage.dice.randrange(1, 1 << 30)}")
        host.attach()
        stage.tally.fault(f"engines with {faults}")
        host.burst(8, stores=0, deadline=10.0)
        host.settle()
    stage.gone(before, set(stage.files()), "chunk files")
    host.leave()
    card.end(signal.SIGTERM)
    card.start(store)
    host.attach()
    host.read_back()


@scenario
def flipping_bus(stage: Stage) -> None:
    """Bits flip between the card's memory and the host's pages, both ways; with --verify-dma all none comes through."""
    card = stage.card("card", "--verify-dma", "all")
    store = f"dir:{stage.directory / 'store'}"
    for rate in ("0.02", "0.2"):
        card.start(store, emulator=f"dma_flip={rate},dma_flip_bytes=8192,seed={stage.dice.randrange(1, 1 << 30)}")
        host = stage.host(card, f"m{rate}")
        stage.tally.fault(f"bus that flips {rate} of its transfers")
        for _ in range(3):
            host.burst(8, deadline=10.0)
            host.settle()
        host.leave()
        card.end(signal.SIGTERM)
        card.start(store)
        host.attach()
        host.read_back()
        host.leave()
        card.end(signal.SIGTERM)


@scenario
def fill_store(stage: Stage) -> None:
    """A server that takes nothing more, then a directory that does not: stores fail, what is there stays and is served."""
    server = stage.server()
    server.start("--maxmemory-policy", "noeviction")
    card = stage.card()
    card.start(server.url)
    host, more = stage.host(card), stage.host(card, "more")
    host.fill()
    before = server.chunks()
    server.ask("CONFIG", "SET", "maxmemory", "1mb")
    stage.tally.fault("store full")
    for _ in range(2):
        more.burst(6, stores=1)
        host.burst(6, stores=0)
        more.settle()
        host.settle()
    stage.gone(before, server.chunks(), "chunks of a full server")
    host.read_back()
    server.ask("CONFIG", "SET", "maxmemory", "0")
    more.fill()
    more.read_back()


@scenario
def two_cards(stage: Stage) -> None:
    """Two cards store and fetch the same prompts on one server, and one of them is killed again and again."""
    server = stage.server()
    server.start()
    cards = [stage.card("a"), stage.card("b")]
    for card in cards:
        card.start(server.url)
    steady, other = stage.host(cards[0]), stage.host(cards[1])
    steady.fill()
    other.take_over(steady)
    for _ in range(3):
        steady.burst(6)
        other.burst(6)
        time.sleep(stage.dice.random() * 0.03)
        cards[1].end(signal.SIGKILL)
        stage.tally.fault("card killed beside another")
        other.leave()
        steady.settle()
        cards[1].start(server.url)
        other.attach()
    steady.read_back()
    other.read_back()


@scenario
def two_versions(stage: Stage) -> None:
    """An older version and this one have one Redis at once, or one directory in turn: each serves what the other stored."""
    if stage.old is None:
        raise Skipped("no older programs were given: --old DIR, with a dpu-app and a host-ctl of an earlier commit")
    old = Pair(stage.directory, stage.card("old", program=f"{stage.old}/dpu-app"), stage.old)
    new = Pair(stage.directory, stage.card("new"), None)
    models: list[str] = []
    if stage.dice.random() < 0.5:
        server = stage.server()
        server.start()
        for pair in (old, new):
            pair.card.start(server.url)
        for _ in range(2):
            for pair in (old, new):
                models.append(f"m{len(models)}")
                pair.store(models[-1])
                stage.tally.fault("chunks of two versions in a server")
                for model in models:
                    old.check(model, stage.tally)
                    new.check(model, stage.tally)
        # What both have seen, and may have stored again, is whole still.
        for pair in (new, old):
            for model in models:
                pair.store(model)
                old.check(model, stage.tally)
                new.check(model, stage.tally)
        return
    for pair in (old, new, old, new):
        pair.card.start(f"dir:{stage.directory / 'store'}")
        for model in models:
            pair.check(model, stage.tally)
        before = set(stage.files())
        models.append(f"m{len(models)}")
        pair.store(models[-1])
        stage.gone(before, set(stage.files()), "files of the other version")
        # An upgrade that goes wrong is a kill.
        pair.card.end(stage.dice.choice([signal.SIGTERM, signal.SIGKILL]))
        stage.tally.fault("version changed over a directory")


@scenario
def bad_hosts(stage: Stage) -> None:
    """Hosts die in the middle, say rubbish, or attach and hang; the honest one notices nothing."""
    card = stage.card()
    card.start(one_of_the_stores(stage))
    host = stage.host(card)
    host.fill()
    hanging = []
    for _ in range(6):
        host.burst(4)
        match stage.dice.randrange(3):
            case 0:
                victim = subprocess.Popen(
                    [sys.executable, str(Path(__file__).parent), "--victim", card.socket, str(stage.dice.randrange(1 << 30))],
                    stdout=subprocess.PIPE,
                )
                assert victim.stdout is not None
                victim.stdout.readline()
                time.sleep(stage.dice.random() * 0.02)
                victim.kill()
                victim.wait()
                stage.tally.fault("host killed")
            case 1:
                with rubbish(card.socket) as door:
                    door.send(stage.dice.randbytes(stage.dice.randrange(1, 512)))
                stage.tally.fault("host says rubbish")
            case _:
                hanging.append(rubbish(card.socket))
                stage.tally.fault("host hangs in its attach")
        host.settle()
    for door in hanging:
        door.close()
    if not card.alive:
        stage.tally.wrong("hangs", 1, f"a host ended the card: exit {card.exit_code}")
        return
    host.read_back()


def rubbish(path: str) -> socket.socket:
    """A connection to a card's socket by somebody who does not know its protocol."""
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    door.connect(path)
    return door


def be_a_victim(path: str, seed: int) -> None:
    """The body of a host that is killed: it stores and fetches until then."""
    host = Host(path, f"victim-{seed}", seed, Tally())
    host.attach()
    print("attached", flush=True)
    while True:
        host.burst(6, stores=0.5)
        host.settle()
