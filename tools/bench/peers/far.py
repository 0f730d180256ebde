"""The far side of transfer engines that read another process's memory: holds the stored chunks, says where, waits to be ended.

    far.py mooncake|ucx PLACE

Prints one line of JSON, then serves until its standard input ends.
"""

import json
import os
import sys

import numpy as np

from place import Place
from prefix import CHUNK_BYTES, Source


def chunks(place):
    source = Source(place.file)
    memory = np.empty((source.chunks, CHUNK_BYTES // 2), dtype=np.uint16)
    for index in range(source.chunks):
        memory[index] = source.chunk(index).reshape(-1)
    return memory


def mooncake(place, memory):
    from mooncake.engine import TransferEngine
    engine = TransferEngine()
    if engine.initialize(place.host, "P2PHANDSHAKE", "tcp", "") != 0 or engine.register_memory(memory.ctypes.data, memory.nbytes) != 0:
        sys.exit("Mooncake's transfer engine does not start")
    return engine, {"name": f"{place.host}:{engine.get_rpc_port()}"}


def ucx(place, memory):
    from nixl._api import nixl_agent, nixl_agent_config
    agent = nixl_agent("far", nixl_agent_config(backends=["UCX"]))
    agent.register_memory([(memory.ctypes.data, memory.nbytes, 0, "chunks")], mem_type="DRAM")
    return agent, {"metadata": agent.get_agent_metadata().hex()}


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    place = Place(**json.loads(sys.argv[2]))
    memory = chunks(place)
    keep, told = {"mooncake": mooncake, "ucx": ucx}[sys.argv[1]](place, memory)
    print(json.dumps(dict(told, address=memory.ctypes.data)), file=answers, flush=True)
    sys.stdin.read()
    os._exit(0)  # the engines' threads need no ceremony


if __name__ == "__main__":
    main()
