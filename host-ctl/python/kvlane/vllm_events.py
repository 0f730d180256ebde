"""What is stored, in vLLM's own words for routers that follow its KV events: BlockStored and BlockRemoved with a medium
of ours, for the blocks as vLLM itself hashes and names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_events import BlockRemoved, BlockStored
from vllm.v1.core.kv_cache_utils import (
    generate_block_hash_extra_keys,
    maybe_convert_block_hash,
    resolve_block_hashes,
    to_event_extra_keys,
)

from .engine.sections import Section
from .engine.words import Save

if TYPE_CHECKING:
    from vllm.v1.request import Request

MEDIUM = "kvlane"


class Describe:
    """Makes the events of a save's chunks from the requests that it knows."""

    def __init__(self, sections: Sequence[Section], hash_tokens: int) -> None:
        """`hash_tokens`: tokens that each of a request's block hashes adds."""
        self._sections, self._hash_tokens = sections, hash_tokens
        self.requests: dict[str, Request] = {}
        """Requests whose saves may begin, by id."""

    def __call__(self, save: Save, at: int) -> tuple[BlockStored, BlockRemoved] | None:
        request, section = self.requests.get(save.request), self._sections[save.section]
        if request is None:
            return None
        chunk, size = save.first_chunk + at, section.page_tokens
        places = section.places(chunk, chunk + 1)
        first, last = places[0], places[-1] + 1
        hashes = resolve_block_hashes(request.block_hashes, self._hash_tokens, size)
        if last > len(hashes):
            return None
        named = [maybe_convert_block_hash(hashes[place]) for place in places]
        lora = request.lora_request
        stored = BlockStored(
            block_hashes=named,
            parent_block_hash=maybe_convert_block_hash(hashes[first - 1]) if first else None,
            token_ids=request.all_token_ids[first * size : last * size],
            block_size=size,
            lora_id=lora.adapter_id if lora else None,
            medium=MEDIUM,
            lora_name=lora.name if lora else None,
            extra_keys=to_event_extra_keys(self._extra_keys(request, place * size, size) for place in places),
            group_idx=section.group,
        )
        return stored, BlockRemoved(block_hashes=named, medium=MEDIUM, group_idx=section.group)

    @staticmethod
    def _extra_keys(request: Request, start: int, size: int) -> Any:
        keys, _ = generate_block_hash_extra_keys(request, start, start + size, 0)
        return keys
