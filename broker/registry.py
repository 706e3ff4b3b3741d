"""Who is in, who fell silent, who was put out, and the min-k rule (paper 5.3, 5.4). Pure.

A client asks that at least k clients be active while it trains. The strictest wish of those who
are active, and the curator's minimum, is what everybody waits for.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Final

from accord.problems import FULL, K_TOO_LARGE, PeerProblem
from accord.task import Clients

NEVER: Final = float("-inf")
SESSIONS_PER_PLACE: Final = 20
"""How many sessions are remembered for each place: clients come and go, and each new session has
cost an admission puzzle, but memory has an end."""
IDLE: Final = 900.0
"""A place is for work: when all are taken, whoever was let in, or had an update accepted, so many
seconds of training ago or more makes room. The slowest machine's hardest ordinary puzzle takes
that long, so nobody who works is in danger; asking for work now and then is not enough."""


@dataclass(slots=True)
class Member:
    """A session.

    Attributes:
        min_clients: its k.
        seen: when it was last heard of, seconds of the broker's monotonic clock.
        updates: how many of its updates were accepted.
        strikes: how many it was given; they never fade.
        worked: when it was let in, or had an update accepted last, in seconds of training.
    """

    min_clients: int
    seen: float
    updates: int = 0
    strikes: int = 0
    worked: float = 0.0


class Registry:
    """All sessions of one model, by name (a digest of the secret token).

    Args:
        rules: the task's.
        evict: with so many strikes a session is put out; 0 for never.
        judges: whether accepted updates are judged at all.

    Attributes:
        members: the sessions.
        judged: how many had an update judged, those forgotten since included. A strike is a
            judgement, so there are never fewer than ``struck``.
        struck: how many of them were given a strike.
        strikes: how many were given to all together.
    """

    def __init__(self, rules: Clients, evict: int = 0, judges: bool = True) -> None:
        self._rules = rules
        self._evict = evict
        self._judges = judges
        self.members: dict[bytes, Member] = {}
        self._roll = _Roll(self.members, rules.silence)
        self.judged = self.struck = self.strikes = 0

    def __contains__(self, name: bytes) -> bool:
        return name in self.members

    def admit(self, name: bytes, min_clients: int, now: float, trained: float = 0.0) -> bool:
        """Let a client in.

        Args:
            name: of its session.
            min_clients: its k.
            now: the time.
            trained: seconds of training so far, pauses not counted: nobody can work in those.

        Returns:
            Whether it is new; admitting a session again changes nothing but its being alive.

        Raises:
            PeerProblem: ``K_TOO_LARGE`` when its k could never be met, ``FULL``.
        """
        if name in self.members:
            self.heard(name, now, trained)
            return False
        maximum = self._rules.maximum
        if min_clients > maximum:
            raise PeerProblem(K_TOO_LARGE, k=min_clients, maximum=maximum)
        self._make_room(now, trained)
        self.members[name] = Member(min_clients, now, worked=trained)
        self._roll.enter(name, min_clients, now)
        return True

    def heard(self, name: bytes, now: float, trained: float = 0.0) -> None:
        """A session gave a sign of life; one that was put out stays out.

        Raises:
            PeerProblem: ``FULL`` when it had been given up and its place is taken.
        """
        member = self.members[name]
        if self.out(name):
            return
        if not self.present(name, now):
            self._make_room(now, trained)
        member.seen = now
        self._roll.enter(name, member.min_clients, now)

    def _make_room(self, now: float, trained: float) -> None:
        """See that there is a place: when all are taken, the idlest one's, if it is idle for long.

        Idle ones that come back may so take each other's places, and nobody's who works.
        """
        if self.standing(now)[0] < self._rules.maximum:
            return
        idlest = min(self.active(now), key=lambda name: self.members[name].worked)
        if trained - self.members[idlest].worked < IDLE:
            raise PeerProblem(FULL, maximum=self._rules.maximum)
        self.leave(idlest)

    def present(self, name: bytes, now: float) -> bool:
        """Whether a session was heard of lately enough."""
        return self.members[name].seen >= now - self._rules.silence

    def works(self, name: bytes, trained: float) -> None:
        """This session works: it keeps its place."""
        self.members[name].worked = trained

    def accepted(self, name: bytes, trained: float = 0.0) -> None:
        """An update of this session was accepted, after so many seconds of training."""
        self.works(name, trained)
        member = self.members[name]
        if self._judges and not member.updates and not member.strikes:
            self.judged += 1
        member.updates += 1

    def strike(self, name: bytes) -> int:
        """Give a strike; the last one that the task allows puts the session out.

        Returns:
            How many it has now.
        """
        member = self.members[name]
        if not member.strikes:
            self.struck += 1
            if not (self._judges and member.updates):
                self.judged += 1
        self.strikes += 1
        member.strikes += 1
        if self.out(name):
            self.leave(name)
        return member.strikes

    def out(self, name: bytes) -> bool:
        """Whether a session was put out."""
        return 0 < self._evict <= self.members[name].strikes

    def surplus(self, now: float) -> list[bytes]:
        """The sessions to be forgotten so that memory has an end: the longest silent ones, those
        first that have never done anything; never one that is active, as a newcomer is. Whoever
        was struck has done something: to be forgotten, and let in anew by an old solution, must
        not be a way out."""
        most = self._rules.maximum * SESSIONS_PER_PLACE
        if len(self.members) <= most:
            return []
        # Many at a time, so that this is not done again for each new session.
        order = sorted(self.members, key=lambda n: (
            self.present(n, now), self.members[n].updates + self.members[n].strikes > 0,
            self.members[n].seen))
        return order[: len(order) - most + most // 10]

    def forget(self, name: bytes) -> None:
        """Forget a session; it is unknown from now on."""
        self._roll.strike_off(name)
        del self.members[name]

    def leave(self, name: bytes) -> None:
        """A session goes; it counts again when it is heard again."""
        self.members[name].seen = NEVER
        self._roll.strike_off(name)

    def active(self, now: float) -> list[bytes]:
        """The sessions that were heard of lately enough."""
        since = now - self._rules.silence
        return [name for name, member in self.members.items() if member.seen >= since]

    def standing(self, now: float) -> tuple[int, int]:
        """How many are active, and how many it takes for each active one's k."""
        count, strictest = self._roll.call(now)
        return count, max(self._rules.minimum, strictest)

    def enough(self, now: float) -> bool:
        """Whether work may be handed out and applied."""
        have, need = self.standing(now)
        return have >= need


class _Roll:
    """How many are active, and their strictest wish: kept as they come and go, so that asking,
    which every message does several times, costs the same however many they are.

    It says what going through all of them would say. That is what it does when a time is before
    one that it was told earlier; a clock that only grows never makes it do so.

    Args:
        members: all sessions, the silent ones too.
        silence: seconds.
    """

    __slots__ = ("_in_order", "_latest", "_members", "_seen", "_silence", "_strictest", "_wishes")

    def __init__(self, members: dict[bytes, Member], silence: float) -> None:
        self._members = members
        self._silence = silence
        self._seen: OrderedDict[bytes, float] = OrderedDict()  # of those who count, oldest first
        self._wishes: Counter[int] = Counter()
        self._strictest = 0
        self._latest = NEVER
        self._in_order = True

    def enter(self, name: bytes, wish: int, now: float) -> None:
        """This session, whose k that is, was heard now."""
        if name not in self._seen:
            self._wishes[wish] += 1
            self._strictest = max(self._strictest, wish)
        self._seen[name] = now
        self._seen.move_to_end(name)
        self._tell(now)

    def strike_off(self, name: bytes) -> None:
        """This session, which is a member still, counts no more."""
        if self._seen.pop(name, None) is None:
            return
        wish = self._members[name].min_clients
        self._wishes[wish] -= 1
        if not self._wishes[wish]:
            del self._wishes[wish]
            if wish == self._strictest:
                self._strictest = max(self._wishes, default=0)

    def call(self, now: float) -> tuple[int, int]:
        """How many there are now, and the strictest wish; 0 without any."""
        self._tell(now)
        if not self._in_order:
            self._call_all()
        since = now - self._silence
        seen = self._seen
        while seen and seen[oldest := next(iter(seen))] < since:
            self.strike_off(oldest)
        return len(seen), self._strictest

    def _tell(self, now: float) -> None:
        if now < self._latest:
            self._in_order = False
        else:
            self._latest = now

    def _call_all(self) -> None:
        """Go through all of them."""
        self._in_order = True
        heard = [(m.seen, name) for name, m in self._members.items() if m.seen > NEVER]
        self._seen = OrderedDict((name, seen) for seen, name in sorted(heard))
        self._wishes = Counter(self._members[name].min_clients for name in self._seen)
        self._strictest = max(self._wishes, default=0)
