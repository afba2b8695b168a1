"""How much the server holds of its clients' questions, and at how many requests a client is."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address, ip_address
from math import ceil

from saysee.serving.refusal import Refusal, busy


class Held:
    """Bytes that one request holds; see `Budget.hold`."""

    def __init__(self, budget: "Budget") -> None:
        self._budget = budget
        self.bytes = 0

    def add(self, count: int) -> None:
        """Count what is held from now on until the request ends.

        Raises:
            Refusal: 503, all requests together would hold more than is allowed.
        """
        self._budget.take(count)
        self.bytes += count


class Budget:
    """Bytes that all requests may hold together. Used in the event loop's thread alone.

    Args:
        allowed: at a time.
    """

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.taken = 0

    @contextmanager
    def hold(self) -> Iterator[Held]:
        """Give a request its account; what it holds is free again when the block ends."""
        held = Held(self)
        try:
            yield held
        finally:
            self.taken -= held.bytes

    def take(self, count: int) -> None:
        """Take bytes, or refuse; see `Held.add`."""
        if self.taken + count > self.allowed:
            raise busy("too much is being sent to this server at the moment; ask again in a second")
        self.taken += count


class Places:
    """Places for questions, from the first byte that is decoded to the answer.

    Args:
        count: how many there are.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.taken = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place for the block.

        Raises:
            Refusal: 503, all are taken.
        """
        if self.taken >= self.count:
            raise busy(f"{self.count} questions are waiting already; ask again in a second")
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


class RateLimit:
    """A token bucket for each client. Used in the event loop's thread alone.

    Args:
        rate: requests a second that are given back.
        burst: requests that a client who was away may send at once.
        clients: how many are remembered; a larger table forgets those not heard for longest, whose buckets are fullest.
        clock: seconds.
    """

    def __init__(self, rate: float, burst: int, clients: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self.burst = burst
        self.clients = clients
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what is left, and when that was so

    def __len__(self) -> int:
        return len(self._buckets)

    def spend(self, address: str, cost: int) -> None:
        """Count a request.

        Args:
            address: of the client. IPv6 addresses are counted by their first 64 bits, which is what one client has.
            cost: as how many requests it counts; one that costs more than a burst costs the burst.

        Raises:
            Refusal: 429, with the seconds until it would be let through.
        """
        now, client = self._clock(), _client(address)
        cost = min(cost, self.burst)
        left, since = self._buckets.pop(client, (float(self.burst), now))
        left = min(self.burst, left + (now - since) * self.rate)
        missing = cost - left
        self._buckets[client] = (left if missing > 0 else left - cost, now)
        if len(self._buckets) > self.clients:
            self._buckets.popitem(last=False)
        if missing > 0:
            seconds = ceil(missing / self.rate)
            message = f"too many requests; {self.rate:g} a second are allowed: ask again in {seconds} s"
            raise Refusal(429, message, {"retry-after": str(seconds)})


def _client(address: str) -> str:
    try:
        parsed = ip_address(address)
    except ValueError:  # a socket without addresses
        return address
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is None:
        return str(IPv6Address(int(parsed) >> 64 << 64))
    return address
