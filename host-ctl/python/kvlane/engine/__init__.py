"""What the connector decides, without vLLM: plain Python that tests run against fakes, and a real dpu-app.

options    what an operator can set
link       a session that comes back by itself
words      what scheduler and workers tell each other
scheduler  which chunks to load and save, which pages are held
worker     posts, polls, gives up
layout     from an engine's tensors to registered memory
"""
