"""One way in a process of its own, so that its CPU and memory can be told from the others'.

Reads words from standard input, answers each with a line of JSON: `store`, `open`, `fetch`, `check`, `end`.
"""

import json
import os
import sys
import time
import traceback

import meter
from place import Place, stop_on_signals
from ways import WAYS


def fetch(way):
    way.before()
    own, helpers, start = meter.cpu_seconds(), sum(map(meter.of_process, way.helpers())), time.perf_counter()
    seconds, times = way.fetch() or (time.perf_counter() - start, 1)
    own, helpers = meter.cpu_seconds() - own, sum(map(meter.of_process, way.helpers())) - helpers
    return {"seconds": seconds, "cpu": (own + helpers) / times, "host_cpu": own / times, "beyond_mib": meter.peak_mib(way.helpers()) - way.pages_bytes() / (1 << 20)}


def answer(way, word):
    match word:
        case "store":
            return {"wire_bytes": way.store()}
        case "open":
            return way.open() or {}
        case "fetch":
            return fetch(way)
        case "check":
            return {"check": way.check()}


def main():
    stop_on_signals()
    name, place = sys.argv[1], Place(**json.loads(sys.argv[2]))
    # Libraries print to standard output as they like: answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    way = None
    try:
        for word in map(str.strip, sys.stdin):
            if word == "end":
                break
            try:
                way = way or WAYS[name](place)
                reply = answer(way, word)
            except Exception as error:  # the table says why a way cannot run: whatever it is
                traceback.print_exc()
                reply = {"error": f"{type(error).__name__}: {error}"[:300]}
            print(json.dumps(reply), file=answers)
    finally:
        if way:
            way.close()
        answers.flush()
        os._exit(0)  # threads of libraries that do not end are left behind


if __name__ == "__main__":
    main()
