"""What a record looks like, whatever is in it: as text and as JSON."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from oxydra import log
from oxydra.log import Form
from oxydra.scrub.exact import ExactScrubber
from oxydra.scrub.guest import GuestScrubber

SECRET = "sk-canary-0123456789abcdef"
AWKWARD = 'pa"ss\\word/with+what=JSON-escapes'  # written otherwise inside a JSON string
RECORD = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [A-Z]+ ")
FORGED = "2026-11-25T10:00:00.000Z ERROR oxydra-vm oxydra.gate: forged"

each_form = pytest.mark.parametrize("form", ["text", "json"])


@pytest.fixture
def said() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level, raising = root.handlers[:], root.level, logging.raiseExceptions
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.raiseExceptions = raising


def set_up(said: io.StringIO, form: Form) -> logging.Logger:
    log.setup("oxydra-test", said, scrub=ExactScrubber([SECRET, AWKWARD]).text, form=form)
    return logging.getLogger("oxydra.some.module")


def fail(text: str) -> None:
    raise ValueError(text)


@each_form
def test_a_record_says_what_it_is_about(said: io.StringIO, form: Form) -> None:
    logger = set_up(said, form)
    with log.fields(session="s1", turn="t1"):
        logger.warning("there are %d", 3)
    logger.info("done")
    first, second = said.getvalue().splitlines()
    if form == "text":
        assert (
            RECORD.match(first) and " WARNING oxydra-test oxydra.some.module [session=s1" in first
        )
        assert first.endswith(" turn=t1]: there are 3")
        assert second.endswith(" INFO oxydra-test oxydra.some.module: done")
        return
    row = json.loads(first)
    assert RECORD.match(f"{row.pop('time')} INFO ")
    assert row == {
        "level": "WARNING",
        "component": "oxydra-test",
        "logger": "oxydra.some.module",
        "session": "s1",
        "turn": "t1",
        "message": "there are 3",
    }
    assert "turn" not in json.loads(second)


@each_form
@pytest.mark.parametrize("secret", [SECRET, AWKWARD])
def test_a_secret_is_in_no_record(said: io.StringIO, form: Form, secret: str) -> None:
    logger = set_up(said, form)
    logger.info("the key is %s", secret)
    logger.info("a\n%s\nb", secret)
    logger.info(f'{{"key": "{secret}"}}')
    with log.fields(session=secret):
        logger.info("x")
    try:
        fail(f"refused:\n{secret}\nis no key")
    except ValueError:
        logger.exception("it failed")
        logger.error("again", exc_info=True, stack_info=True)
    text = said.getvalue()
    assert text.count("it failed") == 1
    assert "Traceback" in text and "is no key" in text
    for spelling in (secret, json.dumps(secret)[1:-1], secret[:12], repr(secret)[1:-1]):
        assert spelling not in text
    if form == "json":
        for line in text.splitlines():
            assert secret not in str(json.loads(line))


@each_form
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"])
def test_nothing_begins_a_record_but_a_record(said: io.StringIO, form: Form, end: str) -> None:
    logger = set_up(said, form)
    logger.info("he said: %s", f"hello{end}{FORGED}{end}")
    with log.fields(turn=f"t1{end}{FORGED}"):
        logger.info("x")
    try:
        fail(f"bad{end}{FORGED}")
    except ValueError:
        logger.exception("y")
    logger.info('{"time": "2026"}%s{"time": "2026", "level": "ERROR"}', end)
    lines = said.getvalue().splitlines()
    if form == "json":
        assert [json.loads(line)["level"] for line in lines] == ["INFO", "INFO", "ERROR", "INFO"]
    else:
        assert len([line for line in lines if RECORD.match(line)]) == 4
        assert all(RECORD.match(line) or line.startswith("  ") for line in lines)


@each_form
def test_no_escape_sequence_gets_out(said: io.StringIO, form: Form) -> None:
    set_up(said, form).info("a\x1b[2J\u202eb\ud800")
    text = said.getvalue()
    assert not set(text) & set("\x1b\u202e\ud800")
    if form == "json":
        assert not set(json.loads(text)["message"]) & set("\x1b\u202e\ud800")


@each_form
def test_a_guest_removes_what_looks_like_a_secret(said: io.StringIO, form: Form) -> None:
    log.setup("oxydra-vm", said, scrub=GuestScrubber().logged, form=form)
    key = "sk-proj-" + "a1B2c3D4e5" * 5
    logging.getLogger("oxydra.x").info("Authorization: Bearer %s", key)
    assert key not in said.getvalue()


def test_several_that_are_attached_are_scrubbed_of_all_secrets() -> None:
    one, two = io.StringIO(), io.StringIO()
    with (
        log.attached("one", one, ExactScrubber([SECRET]).text),
        log.attached("two", two, ExactScrubber([AWKWARD]).text, "json"),
    ):
        logging.getLogger("oxydra.x").info("%s and %s", SECRET, AWKWARD)
    for text in (one.getvalue(), two.getvalue()):
        assert SECRET not in text and AWKWARD not in text
    assert json.loads(two.getvalue())["component"] == "two"
