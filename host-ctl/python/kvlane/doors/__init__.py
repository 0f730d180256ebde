"""What adapters share that hand an engine's blocks in host memory to the card (docs/doors.md). Plain Python: no engine
is imported.

options   what an operator can set
rows      blocks in host memory, as the card is told of them
names     keys of blocks
presence  which blocks the store has
moves     loads and stores, judged block by block
closing   sessions that end beside the engine's thread
door      all of them together, with the sessions
"""
