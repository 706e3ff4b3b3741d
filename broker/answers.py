"""What goes out and comes in over HTTP: answers, refusals in our own sentences, bounded bodies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from aiohttp import web
from aiohttp.http import HttpProcessingError

from accord.circuit import SLOWEST
from accord.messages import encode, refused
from accord.problems import INTERNAL, MALFORMED, NOT_FOUND, TOO_LARGE, PeerProblem, Problem
from broker.limits import READ_SECONDS

log = logging.getLogger("tormentor.broker")

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    # Which server and version this is, is nobody's business.
    "Server": "tormentor",
}
_PIECE: Final = 65_536
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def refusal(problem: Problem) -> web.Response:
    """A refusal as an HTTP answer."""
    message = refused(problem)
    travels = message.code == problem.kind.code
    return web.Response(
        status=problem.kind.http if travels else INTERNAL.http, body=encode(message),
        headers=HEADERS)


def large(body: bytes) -> web.Response:
    """An answer that may be large: it is sent in pieces, as its reader takes them, so that one who
    does not read holds a piece of it in memory and no copy."""
    return web.Response(
        body=_pieces(body), content_type="application/octet-stream",
        headers={"Content-Length": str(len(body))})


async def _pieces(body: bytes) -> AsyncIterator[memoryview]:
    whole = memoryview(body)
    for at in range(0, len(body), _PIECE):
        yield whole[at : at + _PIECE]


async def sentences(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever goes wrong, the other side gets one of the sentences of ``accord.problems``."""
    try:
        if not all(value.isascii() for value in request.headers.values()):
            # aiohttp repeats some in answers of its own, and fails to where they are no text.
            raise PeerProblem(MALFORMED)
        response = await handler(request)
    except Problem as problem:
        response = refusal(problem)
    except web.HTTPException as error:
        response = refusal(PeerProblem(NOT_FOUND if error.status in (404, 405) else MALFORMED))
    except asyncio.CancelledError:
        raise
    except (ConnectionError, TimeoutError, HttpProcessingError, web.RequestPayloadError):
        # The last two are for a body: aiohttp with its parser in Python raises them.
        response = refusal(PeerProblem(MALFORMED))
    except Exception:
        # A mistake of ours; what the request held stays out of the log.
        log.exception("a request failed")
        response = refusal(Problem(INTERNAL))
    if not response.prepared:
        response.headers.update(HEADERS)
        # One request, one connection: so all requests stand in the same line, that of new
        # connections, and none gets more than its share.
        response.force_close()
    return response


async def read_body(request: web.Request, limit: int, seconds: float = READ_SECONDS) -> bytes:
    """A request's body, read no further than its limit and not for ever.

    Args:
        request: whose.
        limit: bytes.
        seconds: for it, besides those for its size.

    Raises:
        PeerProblem: ``TOO_LARGE``, ``MALFORMED``.
    """
    body = bytearray()
    clock = asyncio.get_running_loop().time
    begun = clock()
    try:
        while True:
            async with asyncio.timeout_at(begun + seconds + len(body) / SLOWEST):
                chunk = await request.content.read(65_536)
            if not chunk:
                break
            body += chunk
            if len(body) > limit:
                raise PeerProblem(TOO_LARGE, limit=limit)
    except TimeoutError:
        raise PeerProblem(MALFORMED) from None
    return bytes(body)
