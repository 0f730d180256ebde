"""What an operator can set, in kv_connector_extra_config. Unknown names are errors: a misspelt one would be a silence."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Options:
    socket: str | None = None
    """dpu-app's Unix socket; by default the card is met by Comch."""
    comch_name: str | None = None
    device: str | None = None
    model: str | None = None
    """A name beside the model's fingerprint in keys: engines with different ones share nothing."""
    weights: str = "sampled"
    """How the weights' fingerprint is taken: `sampled`, or `strict`: every byte is read."""
    chunk_tokens: int = 256
    recipe: str | None = None
    """Refuses a card that stores with another; by default whatever the card stores with."""
    namespace: str | None = None
    """Whose quota of the card's tiers is used (`dpu-app --tier-quota`)."""
    importance: str = "neutral"
    """What the tiers hear of a chunk's worth beside its use: `neutral`, or `position`: heads of prompts before tails."""
    load: bool = True
    save: bool = True
    save_answers: bool = True
    """Chunks that the answer completes are saved, too: for the next turn of a chat."""
    min_load_tokens: int = 0
    """A hit below this is recomputed."""
    lookup_wait_ms: float = 1.0
    """Longest time that one scheduler step waits for look-ups, all together."""
    lookup_deadline_ms: float = 500.0
    """From when the card has it. After that a prompt counts as not stored."""
    loads_max: int = 8
    """Loads that the card has at once; others wait on our side."""
    load_margin: float = 1.0
    """Prompts are recomputed where loading them takes longer than this times recomputation."""
    load_wait_s: float = 1.0
    """Prompts are recomputed where the loads before theirs take longer than this, beside their own recomputation."""
    prefill_tokens_s: float | None = None
    """Tokens that the engine prefills a second; by default it is measured."""
    probe_s: float = 5.0
    """First pause between loads that try a store that was too slow; doubles up to probe_max_s."""
    probe_max_s: float = 60.0
    load_deadline_s: float | None = None
    """By default min(30, 2 + 0.1 for each 1024 tokens)."""
    load_grace_s: float = 2.0
    """How long after its deadline a load may stay without an answer before vLLM recomputes elsewhere."""
    save_deadline_s: float = 30.0
    saves_max: int = 16
    """Saves in flight; more are dropped."""
    save_retry_s: float = 1.0
    """First pause after a save that failed (full, read-only, down), before one tries; doubles up to save_retry_max_s."""
    save_retry_max_s: float = 60.0
    hold_share: float = 0.25
    """Share of all pages that saves may hold."""
    idle_wait_ms: float = 2.0
    """How long a step without work waits for the card instead of spinning, and first pause of an idle engine that the card
    owes an answer; grows fourfold, up to idle_wait_max_s."""
    idle_wait_max_s: float = 16.0
    attach_timeout_s: float = 5.0
    retry_s: float = 0.5
    """First pause before the card is tried again; doubles up to retry_max_s."""
    retry_max_s: float = 30.0

    @staticmethod
    def parse(given: dict[str, Any]) -> Options:
        known = {field.name for field in fields(Options)}
        if unknown := sorted(set(given) - known):
            raise ValueError(f"kvlane: unknown option {unknown[0]!r}: docs/vllm.md has {', '.join(sorted(known))}")
        options = Options(**given)
        if options.model is not None and not (isinstance(options.model, str) and options.model.strip()):
            raise ValueError(f"kvlane: model {options.model!r} names nothing: leave it out, or give a name")
        if options.weights not in ("sampled", "strict"):
            raise ValueError(f"kvlane: weights {options.weights!r} is neither sampled nor strict")
        if options.chunk_tokens <= 0:
            raise ValueError(f"kvlane: chunk_tokens {options.chunk_tokens}: give a multiple of the block size")
        if not 0 < options.hold_share <= 1:
            raise ValueError(f"kvlane: hold_share {options.hold_share} is not in (0, 1]")
        for name in ("loads_max", "load_margin", "probe_s", "save_retry_s", "idle_wait_ms"):
            if not getattr(options, name) > 0:
                raise ValueError(f"kvlane: {name} {getattr(options, name)} is not above 0")
        if options.importance not in ("neutral", "position"):
            raise ValueError(f"kvlane: importance {options.importance!r} is neither neutral nor position")
        return options

    def importances(self, first: int, chunks: int) -> list[float] | None:
        """Of a prompt's chunks from `first` on. What attention they receive vLLM does not tell a connector; where they
        stand it does: the further back, the fewer prompts share a chunk. Halves every 16 chunks, to 1/16 at the least."""
        if self.importance == "neutral":
            return None
        return [2.0 ** -min(4.0, (first + index) / 16) for index in range(chunks)]

    def deadline(self, tokens: int) -> float:
        """Seconds that a load of `tokens` may take."""
        return self.load_deadline_s or min(30.0, 2.0 + 0.1 * tokens / 1024)
