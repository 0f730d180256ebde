"""Ways to restore a prefix, by the name that tables give them. Libraries are imported when a way is made, not before."""

from importlib import import_module


def _way(module, kind, *arguments):
    return lambda place: getattr(import_module(f"ways.{module}"), kind)(place, *arguments)


WAYS = {
    "kvlane q5": _way("kvlane", "Kvlane", "q5"),
    "kvlane lossless": _way("kvlane", "Kvlane", "lossless"),
    "kvlane q8+raw": _way("kvlane", "Kvlane", "q8+raw"),
    "kvlane q5, remembered": _way("kvlane", "Kvlane", "q5", True),
    "kvlane lossless, remembered": _way("kvlane", "Kvlane", "lossless", True),
    "LMCache, naive": _way("lmcache_engine", "LMCache", "naive"),
    "LMCache, cachegen": _way("lmcache_engine", "LMCache", "cachegen"),
    "LMCache, naive, resp client": _way("lmcache_engine", "LMCache", "naive", "resp"),
    "redis-py": _way("redis_get", "RedisGet", "python"),
    "redis-py + hiredis": _way("redis_get", "RedisGet", "hiredis"),
    "redis-py, zlib": _way("redis_codec", "RedisCodec", "zlib"),
    "redis-py, lz4": _way("redis_codec", "RedisCodec", "lz4"),
    "redis-py, zstd": _way("redis_codec", "RedisCodec", "zstd"),
    "redis-py, zlib of q5 codes": _way("redis_codes", "RedisCodes"),
    "safetensors, page cache": _way("safetensors_file", "SafetensorsFile", False),
    "safetensors, cold": _way("safetensors_file", "SafetensorsFile", True),
    "NIXL POSIX": _way("nixl_posix", "NixlPosix"),
    "NIXL UCX (tcp)": _way("nixl_ucx", "NixlUcx"),
    "Mooncake TE (tcp)": _way("mooncake_tcp", "MooncakeTcp"),
}

# What is measured over links, too: not files, not what is slower than any link, one of each kind.
LINKED = {"kvlane q5", "kvlane lossless", "kvlane q8+raw", "kvlane q5, remembered", "LMCache, naive", "LMCache, naive, resp client",
          "redis-py + hiredis", "redis-py, zstd", "redis-py, zlib of q5 codes", "NIXL UCX (tcp)", "Mooncake TE (tcp)"}

# What `--quick` shows over a link: that the link works.
QUICK_LINKED = {"kvlane q5", "redis-py + hiredis", "Mooncake TE (tcp)"}
