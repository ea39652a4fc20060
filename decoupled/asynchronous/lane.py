"""A bounded queue towards a worker that may die: it keeps what has been sent until it is dealt with."""

from collections import deque

from decoupled.asynchronous.messages import Input, Target

# So many packets are with a worker at a time, so that it finds the next one there when it is done with one.
WINDOW = 2


class Lane:
    """Packets for one worker, in order. Not locked: whoever shares it holds a lock.

    A full lane drops the packet that has waited longest, and never makes anyone wait.
    """

    def __init__(self, size: int):
        self.dropped = 0
        self._size = size
        self._waiting: deque[Input | Target] = deque()
        self._sent: deque[Input | Target] = deque()

    @property
    def full(self) -> bool:
        """Whether the next packet would push one out."""
        return len(self._waiting) >= self._size

    @property
    def empty(self) -> bool:
        """Whether everything that came is dealt with."""
        return not self._waiting and not self._sent

    @property
    def next_number(self) -> int | None:
        """The minibatch that is sent next; None if nothing waits."""
        return self._waiting[0].number if self._waiting else None

    def put(self, packet: Input | Target) -> None:
        """Adds a packet."""
        if self.full:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(packet)

    def take(self) -> Input | Target | None:
        """The next packet to send, if the worker should have one more."""
        if not self._waiting or len(self._sent) >= WINDOW:
            return None
        self._sent.append(self._waiting.popleft())
        return self._sent[-1]

    def done(self, number: int) -> None:
        """The worker has dealt with the packet of this minibatch, which is the oldest that it has."""
        packet = self._sent.popleft()
        assert packet.number == number, f"minibatch {packet.number} was sent, {number} came back"

    def take_back(self) -> None:
        """The worker has died: what it had not dealt with is sent to the next one."""
        self._waiting.extendleft(reversed(self._sent))
        self._sent.clear()
