"""Inputs that once did what was not expected, as ``scripts/soak fuzz`` kept them."""

from __future__ import annotations

import warnings

import pytest

from accord.messages import vector_from_wire
from lab.soak.fuzz_wire import Complaints, DeskTarget

DESK = {
    "an-expectation-that-is-no-text":
        b"GET /nothing HTTP/1.1\r\nHost: a\r\nExpect: 100-cont\xffnue\r\n\r\n",
    "an-upgrade-that-is-no-text":
        b"GET /train HTTP/1.1\r\nHost: a\r\nUpgrade: h\x80c\r\n\r\n",
    "an-expectation-that-nobody-meets":
        b"POST /join HTTP/1.1\r\nHost: a\r\nExpect: nothing\r\nContent-Length: 1\r\n\r\nx",
}


@pytest.mark.parametrize("raw", DESK.values(), ids=DESK.keys())
async def test_a_desk_answers_with_one_of_the_sentences(raw, tmp_path):
    complaints = Complaints()
    with complaints.listening():
        async with DeskTarget.open(tmp_path) as desk:
            for at_desk in (True, False):
                assert await desk.judged(raw, at_desk) in ("malformed", "not-found")
            await desk.healthy()
    assert complaints.found == []


def test_a_signalling_nan_is_refused_without_a_warning():
    """numpy warned of it on standard error: a line that any stranger could write into a log."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert vector_from_wire(b"\x01\x00\x80\x7f", 1) is None
