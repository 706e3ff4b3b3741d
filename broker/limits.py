"""Every limit of the broker's shell, with its unit and its reason.

Some limits live elsewhere, because they are part of the wire or of a task:

- bytes per message and per upload, numbers in a model, clients, difficulty, rows of a validation
  set: :mod:`accord.messages` and :mod:`broker.validator`;
- places, sessions remembered for each, seconds of silence, rounds and deadlines: the task
  (:mod:`accord.task`) and :mod:`broker.registry`;
- puzzles that are not solved yet cost no memory, so there is no limit on them
  (:mod:`broker.admission`);
- bytes of tor's own log: :data:`accord.tor.LOG_LIMIT`;
- models per desk, and how long a published one stays: options of ``tormentor broker``;
- bytes per second below which a transfer is given up: :data:`accord.circuit.SLOWEST`, the same
  for all three parties.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# -- connections, for each served address ----------------------------------------------------

SERVED: Final = 150.0
"""Connections served in a second and, as each brings one request, requests answered. One costs the
event loop up to a millisecond: so a flood takes a seventh of a core at most, and the rest is left
to those who train. 200 clients that join at the same time, with four requests each, are in within
5 seconds."""
SERVED_AT_ONCE: Final = 200.0
"""Connections served at once after a quiet time: all clients of a large training that come back
after a restart."""
ACCEPTS: Final = 1000.0
"""Connections taken from the kernel in a second, before anything is known of them. That costs some
50 microseconds each; more wait in the kernel's queue."""
BACKLOG: Final = 1024
"""Connections that the kernel keeps until then; most systems allow up to 4096."""
SILENT: Final = 4000
"""Open connections that have said nothing yet: a descriptor each, and no other memory of ours. For
one more, the oldest is closed. So even when as many come as are taken from the kernel, each has
four seconds to speak, two or more round trips through Tor; on a quiet day, :data:`HEAD_SECONDS`."""
LINE: Final = 1000
"""Connections that have spoken and wait for their turn; one more is closed. At :data:`SERVED` a
second the last one waits 7 seconds, well within a client's patience (90)."""
STRANGERS: Final = 950
"""Connections being served that have not shown the token of a session, those in handshake included;
for one more, the oldest is cut. Together with :data:`SERVED` it is a promise: however many come,
whoever has its turn has 5 seconds until it can be the oldest. They take about 20 kB each, 300 kB
at worst."""
SPARE_CONVERSATIONS: Final = 16
"""Training conversations besides those for which the task has places (``clients.maximum``): for
sessions that come back and are told that all is full. For one more, the conversation that was
silent (or refused) for longest is cut, which is none of a client that has a place: those are as
many as there are places, and each was heard within the task's ``silence``."""

# -- seconds ---------------------------------------------------------------------------------

HEAD_SECONDS: Final = 20.0
"""Seconds that a stranger has for a whole request header: ten slow round trips through Tor."""
READ_SECONDS: Final = 30.0
"""Seconds for a request body, or for a message that has begun, besides those for its size."""
HELLO_SECONDS: Final = 30.0
"""Seconds until a training conversation has shown its token."""
HEARTBEAT: Final = 30.0
"""Seconds between pings, so that a connection that died silently is let go."""
SEND_SECONDS: Final = 60.0
"""Seconds within which an answer is taken, besides those for its size; else its reader is cut.
A new circuit may have to be built meanwhile."""
GOODBYE: Final = 2.0
"""Seconds that a conversation which is over waits for the other side to agree."""
LINGERING: Final = 1.0
"""Seconds that the rest of a refused upload is read, so that its sender sees the refusal."""
SHUTDOWN: Final = 3.0
"""Seconds that open conversations have to end when an address is withdrawn."""

# -- bytes and messages ----------------------------------------------------------------------

HEAD_LINE: Final = 2_048
"""Bytes of a request's first line, and of each header's name and value: ours have under 100, those
of Tor Browser under 300."""
HEAD_LINES: Final = 48
"""Headers of a request: Tor Browser sends about ten. With :data:`HEAD_LINE` it bounds what one
stranger's header can fill."""
READ_BUFFER: Final = 65_536
"""Bytes of a body after which aiohttp stops reading until they are taken; it may hold twice that
and one more piece. Of a session's messages it holds half a megabyte, or one message."""
FRONT_HEAD: Final = 16_384
"""Bytes of a request before its first empty line, at the front for ``--tor none``."""
MESSAGES: Final = 200.0
"""Messages a second that one session's are read; those beyond it are left with the sender (TCP's
back-pressure), not refused. One that brings an update which is accepted is not counted: it has
cost noise and a puzzle, and the next one of its session is read only when it is on the disk. So
this is for those that bring nothing, of which an honest client has one for each connection, and a
few a minute."""
MESSAGES_OF_ALL: Final = 1000.0
"""Messages a second that all sessions of a model have together, in equal shares; they take about a
tenth of a core. One who has many sessions then takes no more from the others than as many honest
ones would."""
MESSAGES_OF_ONE: Final = 10.0
"""But never fewer than these for each, several times what an honest client has through Tor."""
MESSAGES_AT_ONCE: Final = 400.0
"""Messages of a session that are read at once after a quiet time: seconds of an honest client that
has no round trip at all."""

PINGS: Final = 1.0
"""Pings and pongs a second of one session. They wait for no disk and no turn, and nobody needs
more: a desk's own heartbeat is one in 30 seconds."""
PINGS_AT_ONCE: Final = 10.0
"""Pings of a session that are answered at once after a quiet time: a measurement of round trips."""

# -- the desk --------------------------------------------------------------------------------

UPLOADS: Final = 4
"""Validation sets that are taken in at a time. Each may fill 64 MB of memory while it comes, and
the one that is then checked some 250 MB more. Slow ones are cut off, so that idle senders cannot
hold the door for long."""
LINGERERS: Final = 5
"""How many models are kept for each that may be in training, published ones included: a published
one costs next to nothing, but memory has an end."""

# -- the log ---------------------------------------------------------------------------------

LOG_LINES: Final = 60.0
"""Entries of the log in a minute, and at once; those beyond it are counted, and the next one tells
how many they were. A desk says something when a model comes or goes, or a disk is full."""
LOG_CHARACTERS: Final = 2_000
"""Characters of one entry: most of a traceback's lines. With :data:`LOG_LINES` a log cannot grow
by more than 170 MB a day, and only while everything goes wrong all day."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Those limits that a door, an app or a desk is made with, so that a test can make them small.

    Attributes are the constants of this module.
    """

    served: float = SERVED
    served_at_once: float = SERVED_AT_ONCE
    accepts: float = ACCEPTS
    silent: int = SILENT
    line: int = LINE
    strangers: int = STRANGERS
    spare_conversations: int = SPARE_CONVERSATIONS
    head_seconds: float = HEAD_SECONDS
    read_seconds: float = READ_SECONDS
    hello_seconds: float = HELLO_SECONDS
    heartbeat: float = HEARTBEAT
    send_seconds: float = SEND_SECONDS
    goodbye: float = GOODBYE
    messages: float = MESSAGES
    messages_of_all: float = MESSAGES_OF_ALL
    messages_of_one: float = MESSAGES_OF_ONE
    messages_at_once: float = MESSAGES_AT_ONCE
    pings: float = PINGS
    pings_at_once: float = PINGS_AT_ONCE
    uploads: int = UPLOADS


class Bucket:
    """So many a second, and so many at once after a quiet time (a token bucket). Pure.

    Args:
        rate: a second.
        at_once: how many at most without waiting.
        now: seconds of a monotonic clock.

    Attributes:
        rate: a second; may change.
    """

    __slots__ = ("_at", "_at_once", "_left", "rate")

    def __init__(self, rate: float, at_once: float, now: float) -> None:
        self.rate = rate
        self._at_once = at_once
        self._left = at_once
        self._at = now

    def wait(self, now: float) -> float:
        """Seconds until there is one; 0 when there is."""
        self._left = min(self._at_once, self._left + max(0.0, now - self._at) * self.rate)
        self._at = now
        return max(0.0, 1.0 - self._left) / self.rate

    def take(self, now: float) -> float:
        """Take one; gives the seconds to wait for it. Whoever takes it waits, so that those who
        come later wait longer."""
        wait = self.wait(now)
        self._left -= 1.0
        return wait

    def give_back(self) -> None:
        """One that was taken does not count."""
        self._left = min(self._at_once, self._left + 1.0)
