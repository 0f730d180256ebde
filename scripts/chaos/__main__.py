"""Runs scenarios in turn until the time is over; scripts/chaos.sh has the options in words."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import kvlane
from scenarios import SCENARIOS, Skipped, Stage, be_a_victim
from tally import ZEROS, Tally


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos.sh")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() % (1 << 31))
    parser.add_argument("--scenario", default=",".join(SCENARIOS))
    parser.add_argument("--old")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--victim", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.victim:
        be_a_victim(given.victim[0], int(given.victim[1]))
    if given.list:
        for name, run in SCENARIOS.items():
            print(f"{name:16} {run.__doc__}")
        return 0
    names = given.scenario.split(",")
    if unknown := [name for name in names if name not in SCENARIOS]:
        print(f"chaos: no scenario {', '.join(unknown)}: there are {', '.join(SCENARIOS)}", file=sys.stderr)
        return 2
    print(f"chaos: seed {given.seed}", file=sys.stderr)
    work = Path(tempfile.mkdtemp(prefix="kvlane-chaos."))
    total = campaign(work, names, given.seed, given.seconds, given.old)
    if given.keep:
        print(f"chaos: files are in {work}", file=sys.stderr)
    else:
        shutil.rmtree(work, ignore_errors=True)
    if given.json:
        print(json.dumps({"seed": given.seed, **total.as_json()}))
    else:
        show(total)
    return 0 if total.clean else 1


def campaign(work: Path, names: list[str], seed: int, seconds: float, old: str | None) -> Tally:
    """Every scenario once, then on in the same order until the time is over."""
    total, began, round_ = Tally(), time.monotonic(), 0
    names = list(names)
    while names and (round_ == 0 or time.monotonic() - began < seconds):
        for name in tuple(names):
            if round_ and time.monotonic() - began >= seconds:
                break
            # Of its name and round, so that one scenario can be run again by itself.
            dice = random.Random(f"{seed} {name} {round_}")
            directory = work / f"{name}-{round_}"
            directory.mkdir()
            since = time.monotonic()
            with Stage(directory, dice.randrange(1 << 30), old) as stage:
                try:
                    SCENARIOS[name](stage)
                except Skipped as reason:
                    print(f"chaos: {name}: skipped: {reason}", file=sys.stderr)
                    names.remove(name)
                    continue
                except (RuntimeError, kvlane.KvlaneError) as error:
                    # A process that does not start, a card that is gone or refuses: nothing that a scenario asks for.
                    stage.tally.wrong("hangs", 1, f"{type(error).__name__}: {error}")
            tally = stage.tally
            verdict = "ok" if tally.clean else "WRONG"
            faults = ", ".join(f"{count} {kind}" for kind, count in tally.faults.items())
            print(
                f"chaos: {name} {round_}: {verdict}: {tally.requests} requests, {tally.chunks} chunks compared, "
                f"latest {tally.lateness * 1e3:+.0f} ms, {time.monotonic() - since:.1f} s; {faults}",
                file=sys.stderr,
            )
            for note in tally.notes:
                print(f"chaos:   {note}", file=sys.stderr)
            total.add(tally)
        round_ += 1
    return total


def show(total: Tally) -> None:
    print(f"\n{total.requests} requests, {total.chunks} chunks compared byte by byte, {sum(total.faults.values())} faults:")
    for kind, count in sorted(total.faults.items()):
        print(f"  {count:6} {kind}")
    print()
    for column, words in ZEROS.items():
        print(f"  {total.zeros[column]:6} {words}")
    print(f"  latest answer: {total.lateness * 1e3:+.0f} ms from its deadline")


sys.exit(main())
