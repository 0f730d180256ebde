"""What the connector decides, without vLLM: plain Python that tests run against fakes, and a real dpu-app.

options    what an operator can set
settings   a model's settings in one spelling
fingerprint  what a folder of weights holds, by content
adapters   LoRA adapters by their files
link       a session that comes back by itself
words      what scheduler and workers tell each other
sections   what a model's cache consists of, and which pages of each part a prefix needs
prompts    what is known of one request
scheduler  which chunks to load and save
lookups    what the store has: asked in order, and a silent card is waited for once
pace       whether a load is worth it, and how many are with the card
saves      which computed chunks are saved
holds      pages that the card may still touch
backoff    pauses between tries of what fails
faults     what is said of faults, once
idle       when an engine that has nothing to compute looks after the card
worker     posts, polls, gives up
layout     from an engine's tensors to registered memory
"""
