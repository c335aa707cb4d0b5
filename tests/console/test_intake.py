"""What is taken of what comes in: any bytes, in any pieces."""

from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st

from console.intake import CTRL_C, LINE_LIMIT_BYTES, QUIET_S, WAITING_LIMIT_BYTES, Intake

LINE_END = re.compile(rb"[\r\n\x03]")

#: Bytes as a line brings them: long runs of one, line ends, Ctrl-C.
CHUNKS = st.one_of(
    st.binary(max_size=64),
    st.builds(lambda byte, count: bytes([byte]) * count, st.integers(0, 255), st.integers(0, 6000)),
    st.sampled_from([b"\r", b"\n", b"\r\n", CTRL_C, b"status\r", b"AT\r"]),
)


def all_of(intake: Intake) -> list[bytes]:
    lines = []
    while line := intake.read():
        lines.append(line)
    return lines


@given(st.lists(st.tuples(CHUNKS, st.booleans(), st.floats(0, 2 * QUIET_S)), max_size=40))
def test_whatever_comes_is_bounded_and_what_comes_after_it_is_heard(
    pieces: list[tuple[bytes, bool, float]],
) -> None:
    intake, now = Intake(), 0.0
    taken = fed = refused = 0
    line = 0
    for data, read, pause in pieces:
        now += pause
        intake.feed(data, now)
        fed += len(data)
        assert intake.waiting <= WAITING_LIMIT_BYTES
        refused += intake.report()
        if intake.spoilt:  # whoever has read the beginning throws it away
            intake.spoilt, line = False, 0
        if read:
            for each in all_of(intake):
                taken += len(each)
                line = 0 if LINE_END.search(each) else line + len(each)
                assert line <= LINE_LIMIT_BYTES
    intake.clear()
    now += 2 * QUIET_S
    intake.feed(b"status\r", now)
    assert all_of(intake) == [b"status\r"]
    assert intake.report() == 0
    assert taken <= fed
    assert refused <= 2 * fed  # what was read of a line that is refused later counts there, too


@given(st.lists(st.text("abc \t", max_size=50), max_size=20), st.data())
def test_lines_come_out_as_they_went_in_however_they_were_cut(lines: list[str], data: st.DataObject) -> None:
    whole = "".join(f"{line}\r" for line in lines).encode()
    intake, at = Intake(), 0
    while at < len(whole):
        size = data.draw(st.integers(1, len(whole) - at))
        intake.feed(whole[at : at + size], 0.0)
        at += size
    assert all_of(intake) == [f"{line}\r".encode() for line in lines]


@given(st.sampled_from(["\r", "\n", "\r\n"]), st.integers(1, 5))
def test_a_line_end_of_two_characters_is_one(end: str, count: int) -> None:
    intake = Intake()
    for each in f"status{end}" * count:
        intake.feed(each.encode(), 0.0)
    assert len(all_of(intake)) == count


@given(st.integers(LINE_LIMIT_BYTES + 1, 10 * LINE_LIMIT_BYTES), st.integers(1, 5000))
@example(LINE_LIMIT_BYTES + 1, 1)
def test_a_line_that_is_too_long_is_refused_as_a_whole(length: int, piece: int) -> None:
    intake = Intake()
    whole = b"x" * length + b"\rstatus\r"
    for at in range(0, len(whole), piece):
        intake.feed(whole[at : at + piece], 0.0)
    assert all_of(intake) == [b"status\r"]
    assert intake.report() == length
    assert not intake.spoilt


def test_the_longest_line() -> None:
    intake = Intake()
    intake.feed(b"x" * LINE_LIMIT_BYTES + b"\r", 0.0)
    assert all_of(intake) == [b"x" * LINE_LIMIT_BYTES + b"\r"]
    assert intake.report() == 0


def test_what_was_read_of_a_line_is_spoilt_when_it_becomes_too_long() -> None:
    intake = Intake()
    intake.feed(b"x" * 100, 0.0)
    assert intake.read() == b"x" * 100
    intake.feed(b"x" * LINE_LIMIT_BYTES, 0.0)
    assert intake.spoilt
    assert intake.waiting == 0
    assert intake.report() == LINE_LIMIT_BYTES + 100


def test_a_paste_without_a_line_end_is_over_when_nothing_comes_any_more() -> None:
    intake = Intake()
    intake.feed(b"x" * (LINE_LIMIT_BYTES + 1), 0.0)
    assert intake.refusing
    assert not intake.rest(QUIET_S)
    assert intake.rest(2 * QUIET_S)
    intake.feed(b"status\r", 3 * QUIET_S)
    assert all_of(intake) == [b"status\r"]


def test_lines_over_lines_are_refused_until_they_end() -> None:
    intake = Intake()
    flood = b"0123456789\r" * 100_000
    for at in range(0, len(flood), 4096):
        intake.feed(flood[at : at + 4096], 0.0)
    waiting = all_of(intake)
    assert set(waiting) == {b"0123456789\r"}
    assert len(waiting) * 11 + intake.report() >= len(flood) - 11
    intake.feed(b"status\r", 2 * QUIET_S)
    assert all_of(intake) == [b"status\r"]


def test_ctrl_c_ends_a_refusal_at_once() -> None:
    intake = Intake()
    intake.feed(b"x" * (LINE_LIMIT_BYTES + 1), 0.0)
    intake.feed(b"xx" + CTRL_C + b"status\r", 0.0)
    assert all_of(intake) == [CTRL_C, b"status\r"]
