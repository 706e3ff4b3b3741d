"""Every refusal TorMentor can make, once: a code, an HTTP status, an exit status, a sentence.

A :class:`Problem` is somebody's own mistake or bad luck, here, on this machine: a wrong file, a
missing tor. A :class:`PeerProblem` is what the other side did: bytes that are not a message, a
task whose signature fails. The two are kept apart because only the first can be mended by whoever
reads the sentence.

A broker's refusal travels as its code and whole numbers, never as text, so that no peer can put
words on another's screen (:meth:`Problem.wire`, :func:`from_wire`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

# Exit statuses, documented in README.md. 2 is click's own (wrong usage), 130 is Ctrl-C.
EXIT_BUG: Final = 1
EXIT_USAGE: Final = 2
EXIT_DATA: Final = 3
EXIT_TASK: Final = 4
EXIT_TOR: Final = 5
EXIT_AWAY: Final = 6
EXIT_REFUSED: Final = 7
EXIT_DISTRUST: Final = 8
EXIT_DISK: Final = 9
EXIT_BUDGET: Final = 10
EXIT_LEFT: Final = 11
EXIT_AUDIT: Final = 12
EXIT_INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of refusal.

    Attributes:
        code: stable name, for machines and for the wire.
        http: status of an HTTP answer that carries it.
        exit: status the command line ends with.
        sentence: what happened and what to do, with ``str.format`` fields.
    """

    code: str
    http: int
    exit: int
    sentence: str


KINDS: Final[dict[str, Kind]] = {}


def _kind(code: str, http: int, exit_status: int, sentence: str) -> Kind:
    kind = Kind(code, http, exit_status, sentence)
    if code in KINDS:
        raise ValueError(f"two problems named {code}")
    KINDS[code] = kind
    return kind


# -- what a person typed ---------------------------------------------------------------------
BAD_OPTION = _kind("bad-option", 400, EXIT_USAGE, "{option} {what}.")
NOT_AN_ONION = _kind(
    "not-an-onion", 400, EXIT_USAGE,
    "'{address}' is not a version 3 onion address: 56 letters and digits followed by .onion, "
    "with a checksum; copy the whole address that you were given.")
NO_SESSION = _kind(
    "no-session", 400, EXIT_USAGE,
    "There is no session {where}; run 'tormentor join' first, or name the session file "
    "with --session.")
MANY_SESSIONS = _kind(
    "many-sessions", 400, EXIT_USAGE,
    "There are {count} unfinished sessions; say which with 'tormentor solve ONION' "
    "or --session FILE.")

UNFINISHED = _kind(
    "unfinished", 400, EXIT_USAGE,
    "{path} is an unfinished session with another {what}; go on with '{command}', replace it by "
    "saying --again, or keep a second one with --session FILE.")
BAD_INVITATION = _kind(
    "bad-invitation", 400, EXIT_USAGE,
    "'{text}' is not a key that can be invited: 56 letters and digits, with a checksum, as "
    "'tormentor key' prints it for whoever types that; copy the whole of it.")

# -- data ------------------------------------------------------------------------------------
NO_FILE = _kind("no-file", 400, EXIT_DATA, "Cannot read {path}: {why}; check the path.")
EMPTY_FILE = _kind(
    "empty-file", 400, EXIT_DATA, "{path} holds no rows; give a file with a header and data.")
BAD_TABLE = _kind("bad-table", 400, EXIT_DATA, "{path} is not a table: {why}.")
MISSING_COLUMN = _kind(
    "missing-column", 400, EXIT_DATA,
    "{path} has no column {column}, which the task asks for; its header must name: "
    "{expected}.")
UNKNOWN_COLUMN = _kind(
    "unknown-column", 400, EXIT_DATA,
    "{path} has a column {column} that the task does not know: is it the right file? To join with "
    "it all the same, say --ignore-columns; then its privacy ledger stays the same one.")
BAD_CELL = _kind(
    "bad-cell", 400, EXIT_DATA, "{path}, row {row}, column {column}: {why}; correct that row.")
ONE_CLASS = _kind(
    "one-class", 400, EXIT_DATA,
    "Every row of {path} has {column} = {value}; give data with both answers.")
TOO_FEW_ROWS = _kind(
    "too-few-rows", 400, EXIT_DATA,
    "{path} has {rows} rows and {needed} are needed{why}; give more data.")
LEAKED_LABEL = _kind(
    "leaked-label", 400, EXIT_DATA,
    "In {path} the column {column} equals the answer {target} in every row: the label stands "
    "among the features; remove the column from the task.")
NO_PARQUET = _kind(
    "no-parquet", 400, EXIT_DATA,
    "Reading {path} needs pyarrow; type: pip install 'tormentor[parquet]'.")
LEAKS = _kind(
    "leaks", 400, EXIT_DATA,
    "{path} has the answer among its features: column {column} {how} {target}; take that column "
    "out, or whatever is trained on it only looks right.")
NO_HOSTS = _kind(
    "no-hosts", 400, EXIT_USAGE,
    "The rehearsal's hosts cannot be brought up: {why}; {what}.")
NO_LAB = _kind(
    "no-lab", 400, EXIT_USAGE,
    "The demo needs {package}; type: pip install 'tormentor[lab]'.")
DATA_CHANGED = _kind(
    "data-changed", 400, EXIT_DATA,
    "{path} is not the file this session was joined with; its privacy ledger would be wrong. "
    "Put the file back, or join with --again.")

# -- tasks, models, keys ---------------------------------------------------------------------
BAD_TASK = _kind("bad-task", 400, EXIT_TASK, "The task {path} is not right: {why}; edit it.")
BAD_EXPERIMENT = _kind(
    "bad-experiment", 400, EXIT_USAGE, "The experiment {path} is not right: {why}; edit it.")
BAD_INVENTORY = _kind(
    "bad-inventory", 400, EXIT_USAGE, "The inventory {path} is not right: {why}; edit it.")
OTHER_PLACE = _kind(
    "other-place", 400, EXIT_USAGE,
    "The results in {path} are from {there}, and these would be from {here}; give another "
    "--output, or put the old ones away with --fresh.")
NO_CONTROLLER = _kind(
    "no-controller", 400, EXIT_USAGE,
    "There is no {what} here, which machines elsewhere are driven with; type: deploy/run, with "
    "the same arguments that 'tormentor experiment' has, in a checkout of TorMentor.")
BAD_MODEL = _kind(
    "bad-model", 400, EXIT_DISTRUST,
    "{path} is not a model that its address signed ({why}); do not use it, and fetch it "
    "again.")
NO_MODEL = _kind(
    "no-model", 400, EXIT_DISK, "Cannot read the model {path}: {why}; check the path.")
BAD_KEY = _kind("bad-key", 400, EXIT_DISK, "{path} is not a usable key: {why}.")
BAD_SESSION = _kind(
    "bad-session", 400, EXIT_DISK, "{path} is not a session file: {why}; join again.")
BAD_LEDGER = _kind(
    "bad-ledger", 400, EXIT_DISK,
    "The privacy ledger {path} is damaged at line {line}; restore it from a copy: without it "
    "nobody knows what was already spent.")
LOCKED = _kind(
    "locked", 409, EXIT_DISK,
    "Another process is using {path}; wait for it to end, or stop it.")
DISK = _kind("disk", 500, EXIT_DISK, "Cannot write {path}: {why}; nothing was half written.")

# -- tor -------------------------------------------------------------------------------------
TOR_MISSING = _kind(
    "tor-missing", 500, EXIT_TOR, "There is no tor program here; type: sudo apt-get install tor")
TOR_OLD = _kind(
    "tor-old", 500, EXIT_TOR,
    "This is tor {version}, and {needed} or newer is needed; type: sudo apt-get install tor, "
    "or take it from the Tor Project's packages.")
TOR_FAILED = _kind("tor-failed", 500, EXIT_TOR, "tor did not start: {why}; its log is {log}.")
TOR_SLOW = _kind(
    "tor-slow", 500, EXIT_TOR,
    "tor reached {percent} % in {seconds} s and stopped there ({what}); check this machine's "
    "network and clock; its log is {log}.")
TOR_AWAY = _kind(
    "tor-away", 500, EXIT_TOR,
    "No tor answers at {where}; start it, or let TorMentor start its own with "
    "--tor launch.")
TOR_CONTROL = _kind(
    "tor-control", 500, EXIT_TOR,
    "The tor at {where} does not let us in: {why}; add 'ControlPort 9051' and "
    "'CookieAuthentication 1' to its torrc, or use --tor launch.")
TOR_REFUSED = _kind(
    "tor-refused", 500, EXIT_TOR,
    "The tor at {where} refused to {what}: {why}; update it, or use --tor launch.")
TOR_USER = _kind(
    "tor-user", 500, EXIT_TOR,
    "The system's tor runs as {user} and could not open our sockets; run the broker as {user}, "
    "or as root, or use --tor launch.")

# -- the other side is not there -------------------------------------------------------------
AWAY = _kind(
    "away", 502, EXIT_AWAY,
    "Nobody answers at {address} ({why}); it may be gone or not yet published: check the "
    "address and try again.")
LOST = _kind(
    "lost", 502, EXIT_AWAY,
    "The connection to {address} was lost and could not be made again in {seconds} s; run the "
    "same command again and it goes on where it was.")
HOST_AWAY = _kind(
    "host-away", 502, EXIT_AWAY,
    "The machine in {host} does not answer ({why}); see that it runs and that SSH reaches it, and "
    "type the same command again: it goes on where it was.")
HOST_FAILED = _kind(
    "host-failed", 502, EXIT_AWAY,
    "The machine in {host} could not {task}: {why}; mend that, and type the same command again: "
    "it goes on where it was (what was said is in {log}).")
HOST_UNFIT = _kind(
    "host-unfit", 502, EXIT_AWAY, "The machine in {host} {what}.")
PLAY_FAILED = _kind(
    "play-failed", 500, EXIT_AWAY,
    "Ansible could not play '{play}': {why}; what it said is in {log}.")
NOT_INVITED = _kind(
    "not-invited", 403, EXIT_REFUSED,
    "{address} can be reached by invited clients only, and {why}; give what 'tormentor key' "
    "prints to the curator.")

# -- a broker refuses (only whole numbers in these sentences: they travel) --------------------
MALFORMED = _kind(
    "malformed", 400, EXIT_DISTRUST,
    "The other side sent something that is not a message of this protocol; it may run another "
    "version, or not be TorMentor.")
TOO_LARGE = _kind(
    "too-large", 413, EXIT_DISTRUST, "A message was larger than the {limit} bytes allowed.")
NOT_FOUND = _kind("not-found", 404, EXIT_REFUSED, "There is nothing at that path.")
INTERNAL = _kind(
    "internal", 500, EXIT_REFUSED, "The broker made a mistake of its own; try again later.")
DESK_FULL = _kind(
    "desk-full", 503, EXIT_REFUSED,
    "This broker already hosts its {limit} models; try later or ask another broker.")
NO_INVITATIONS = _kind(
    "no-invitations", 400, EXIT_REFUSED,
    "This broker runs without Tor and lets everybody in: invitations need Tor; ask another broker.")
CURATOR_REFUSED = _kind(
    "curator-refused", 403, EXIT_REFUSED,
    "This broker takes tasks of curators that it knows only; ask whoever runs it to say --curator "
    "with your key, or ask another broker.")
TASK_REFUSED = _kind(
    "task-refused", 400, EXIT_REFUSED,
    "The broker refuses the task: its signature, or its validation set does not fit it; make it "
    "again with 'tormentor curate'.")
NOT_SOLVED = _kind(
    "not-solved", 403, EXIT_REFUSED,
    "The puzzle is not solved, or too old; 'tormentor solve' fetches a new one by itself.")
K_TOO_LARGE = _kind(
    "k-too-large", 403, EXIT_REFUSED,
    "You ask for {k} clients and the task admits at most {maximum}; join with a smaller "
    "--min-clients.")
FULL = _kind(
    "full", 503, EXIT_REFUSED,
    "All {maximum} places of this model are taken; one is free again when somebody leaves, or has "
    "done nothing for a quarter of an hour: try again later, nothing was spent.")
UNKNOWN_CLIENT = _kind(
    "unknown-client", 403, EXIT_REFUSED,
    "The broker does not know this session; join again.")
EVICTED = _kind(
    "evicted", 403, EXIT_REFUSED,
    "The broker has put this session out after {strikes} strikes: its updates oppose the curator's "
    "validation set. If your data are right, that set may not be; ask the curator.")
STALE_TICKET = _kind(
    "stale-ticket", 409, EXIT_REFUSED,
    "That ticket is not yours or no longer good; the update was not applied.")
BAD_DELTA = _kind(
    "bad-delta", 400, EXIT_REFUSED,
    "That update is not {dimension} finite numbers within the norm bound, or is of more steps than "
    "the task allows.")
TOO_FEW_CLIENTS = _kind(
    "too-few-clients", 409, EXIT_REFUSED,
    "{have} of the {need} clients that somebody asks for are here; waiting for more.")
ROUND_OPEN = _kind(
    "round-open", 409, EXIT_REFUSED,
    "Waiting for the others of this round: {have} of {need} have answered.")
NOT_PUBLISHED = _kind(
    "not-published", 404, EXIT_REFUSED,
    "The model is not published yet; follow it with 'tormentor status ONION --watch'.")
ENDED = _kind(
    "ended", 410, EXIT_REFUSED,
    "Training has ended and the model is published; fetch it with 'tormentor fetch ONION'.")
NOT_YET = _kind(
    "not-yet", 404, EXIT_REFUSED, "The model is not published yet; follow it with '{command}'.")

# -- we do not trust the other side ----------------------------------------------------------
BAD_SIGNATURE = _kind(
    "bad-signature", 400, EXIT_DISTRUST,
    "The task at {address} is not signed by its curator; do not join it.")
OTHER_CURATOR = _kind(
    "other-curator", 400, EXIT_DISTRUST,
    "The task at {address} was signed by curator {found}, not by {expected}; ask whoever "
    "gave you the address.")
OTHER_TASK = _kind(
    "other-task", 400, EXIT_DISTRUST,
    "The task at {address} is not the one that you signed or joined; leave it.")
TOO_HARD = _kind(
    "too-hard", 400, EXIT_DISTRUST,
    "The broker asks for a puzzle of difficulty {difficulty} and your limit is {limit}; raise "
    "--max-difficulty if you mean it (each step takes 16 times longer).")
BAD_WEIGHTS = _kind(
    "bad-weights", 400, EXIT_DISTRUST,
    "The broker at {address} sent a model that is not {dimension} finite numbers; nothing was "
    "sent to it.")

# -- privacy ---------------------------------------------------------------------------------
BUDGET_SPENT = _kind(
    "budget-spent", 403, EXIT_BUDGET,
    "The privacy budget is spent: epsilon {spent} of {budget} at delta {delta:g}; no "
    "more updates are sent. Join with a larger --budget if your data's owners agree.")
BUDGET_SMALL = _kind(
    "budget-small", 403, EXIT_BUDGET,
    "{what} would cost epsilon {first} and {left} of the budget is left; choose a smaller "
    "--epsilon, a smaller --batch, fewer --updates, or a larger --budget.")
AUDIT_FAILED = _kind(
    "audit-failed", 500, EXIT_AUDIT,
    "The audit shows epsilon {shown} where the ledger says at most {ledger} ({game}); send no "
    "updates with this copy, run the same audit again, and report it when that says so too.")


TRAVELS: Final = frozenset({
    MALFORMED, TOO_LARGE, NOT_FOUND, INTERNAL, DESK_FULL, CURATOR_REFUSED, NO_INVITATIONS,
    TASK_REFUSED, NOT_SOLVED, K_TOO_LARGE, FULL, UNKNOWN_CLIENT, EVICTED, STALE_TICKET, BAD_DELTA,
    TOO_FEW_CLIENTS, ROUND_OPEN, NOT_PUBLISHED, ENDED,
})
"""What a broker may say to a peer; its other problems are its own business (:data:`INTERNAL`)."""


class Problem(Exception):
    """A refusal, with what is needed to say it.

    Args:
        kind: one of this module's kinds.
        details: the values of the sentence's fields.
    """

    def __init__(self, kind: Kind, **details: object) -> None:
        self.kind = kind
        self.details = details
        super().__init__(kind.sentence.format(**details))

    @property
    def sentence(self) -> str:
        """What happened and what to do, in one sentence."""
        return str(self)

    def wire(self) -> tuple[str, dict[str, int]]:
        """The form that may travel: the code, and the details that are whole numbers."""
        if self.kind not in TRAVELS:
            return INTERNAL.code, {}
        return self.kind.code, {k: v for k, v in self.details.items() if type(v) is int}


class PeerProblem(Problem):
    """A refusal caused by what the other side sent or did."""


def from_wire(code: str, numbers: Mapping[str, int]) -> PeerProblem:
    """Turn a peer's refusal back into the exception, trusting nothing but its code.

    An unknown code, or numbers that do not fit its sentence, is itself :data:`MALFORMED`.
    """
    kind = KINDS.get(code)
    if kind is None or kind not in TRAVELS:
        return PeerProblem(MALFORMED)
    try:
        return PeerProblem(kind, **numbers)
    except (KeyError, IndexError, ValueError, TypeError):
        return PeerProblem(MALFORMED)
