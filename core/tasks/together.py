"""What the processes of one worker know of each other, in memory that they share."""

import mmap
import os


class Together:
    """The processes of one worker. It is made before they are forked.

    Args:
        concurrency: Calls at once, in all of them.
        processes: How many they are.
    """

    def __init__(self, concurrency: int, processes: int) -> None:
        self.concurrency, self.processes = concurrency, processes
        self._others, others = os.pipe()
        os.set_blocking(self._others, False)
        os.write(others, b"." * (processes - 1))
        self._idle, self._number = mmap.mmap(-1, processes), 0

    def join(self, number: int) -> None:
        """Be the process of this number, from 1 on, in the place of one that has died."""
        self._number = number - 1
        self._idle[self._number] = False

    def is_complete(self) -> bool:
        """Whether all others serve already; each process asks once, when it does itself."""
        try:
            return not os.read(self._others, 1)
        except BlockingIOError:
            return True

    def are_idle(self, idle: bool) -> bool:
        """Whether none of them has anything to do, as this one says of itself now and the others when they last did."""
        self._idle[self._number] = idle
        return all(self._idle[:])
