"""Keys of an engine's blocks: 32 bytes of BLAKE2b over the engine's own name of a block, under a key that says all that
the name leaves open (the model, how the block lies in memory, what the card stores with).

The engine's name is a hash of the tokens and of what else decides the KV, which it has computed already. The
personalization is the doors' own, and the door's name is in the key: no block of a door is taken for one of another, or
for a chunk of the direct connector. Bytes: docs/doors.md, "Keys".
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from .. import KEY_BYTES

PERSON = b"kvlane door 1"


class Names:
    def __init__(self, door: str, words: Mapping[str, object]) -> None:
        self.text = json.dumps({"door": door, **words}, sort_keys=True, separators=(",", ":"))
        """All that the engine's names leave open, in one line."""
        key = hashlib.blake2b(self.text.encode(), digest_size=KEY_BYTES, person=PERSON).digest()
        self._hash = hashlib.blake2b(digest_size=KEY_BYTES, key=key, person=PERSON)

    def name(self, block: bytes) -> bytes:
        """The key of the block that the engine calls `block`."""
        hash = self._hash.copy()
        hash.update(block)
        return hash.digest()
