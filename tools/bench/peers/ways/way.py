"""What every way has: the prefix, the pages, and a check that they agree."""

import numpy as np

from prefix import CHUNK_BYTES, Pages, Source


class Way:
    def __init__(self, place):
        self.place = place
        self.pages = None

    def source(self):
        return Source(self.place.file)

    def store(self):
        """Puts the prefix where `fetch` finds it; bytes that a fetch moves."""
        raise NotImplementedError

    def open(self):
        """Once before fetches: memory, connections."""
        self.pages = Pages(self.place.chunks)

    def before(self):
        """Before each fetch, outside of the measured time."""

    def fetch(self):
        """Restores the prefix into the pages. None, or (seconds of one fetch, fetches done) if the way times itself."""
        raise NotImplementedError

    def check(self):
        """Fetches once more into wiped pages and compares: an error, or in what way they are equal."""
        source = self.source()
        self.pages.wipe()
        self.fetch()
        for index in range(self.place.chunks):
            self.compare(index, source.chunk(index), self.pages.chunk(index))
        return self.promise

    promise = "bit for bit"

    def compare(self, index, expected, restored):
        if not np.array_equal(expected, restored):
            raise ValueError(f"chunk {index}: {np.mean(expected != restored):.1%} of the elements differ")

    def pages_bytes(self):
        """What the pages take of this process's memory, or of its child's."""
        return self.pages.memory.nbytes if self.pages else self.place.chunks * CHUNK_BYTES

    def helpers(self):
        """Processes beside this one that belong to the client."""
        return []

    def close(self):
        """Ends what `open` and `store` started."""
