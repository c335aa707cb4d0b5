"""Frames and what is in them: whatever a peer sends is a message or a FrameError."""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from appliance.wire import messages
from appliance.wire.errors import FrameError
from appliance.wire.frames import FRAME_LIMIT_BYTES, Decoder, encode
from appliance.wire.messages import (
    Confidential,
    Generate,
    Hello,
    Login,
    Message,
    Sampling,
    Tokens,
    ToSupervisor,
    Turn,
)

KINDS = [
    kind
    for kind in (*Message.__subclasses__(), *Confidential.__subclasses__())
    if kind.__module__ == messages.__name__ and kind is not Confidential
]
ANYTHING: Any = KINDS[0]
for _kind in KINDS[1:]:
    ANYTHING = ANYTHING | _kind

UNIONS = [
    messages.ToSupervisor,
    messages.FromSupervisor,
    messages.ToWorker,
    messages.FromWorker,
    messages.ToForkserver,
    messages.FromForkserver,
    messages.FromWorkerPipe,
    messages.ToWorkerPipe,
]


def values(info: inspect.Type) -> st.SearchStrategy[Any]:
    """Values of a type, as msgspec describes it, within its limits."""
    match info:
        case inspect.StrType(pattern=str(pattern)):
            return st.from_regex(pattern, fullmatch=True, alphabet=st.characters(codec="ascii")).map(
                str.strip
            )
        case inspect.StrType(min_length=low, max_length=high):
            return st.text(st.characters(codec="utf-8"), min_size=low or 0, max_size=min(high or 20, 20))
        case inspect.LiteralType(values=choices):
            return st.sampled_from(choices)
        case inspect.BytesType(min_length=low, max_length=high):
            return st.binary(min_size=low or 0, max_size=min(high or 20, max(low or 0, 20)))
        case inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(values(key), values(value), max_size=4)
        case inspect.IntType(ge=low, le=high):
            return st.integers(-(2**63) if low is None else low, 2**64 - 1 if high is None else high)
        case inspect.FloatType(ge=at_least, gt=above, le=most):
            low_end = above if at_least is None else at_least
            return st.floats(low_end, most, exclude_min=above is not None, allow_nan=False)
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.EnumType(cls=cls):
            return st.sampled_from(list(cls))
        case inspect.ListType(item_type=item, min_length=low, max_length=_):
            return st.lists(values(item), min_size=low or 0, max_size=4)
        case inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(values(key), values(value), max_size=4)
        case inspect.TupleType(item_types=items):
            return st.tuples(*map(values, items))
        case inspect.UnionType(types=types):
            return st.one_of(*map(values, types))
        case inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{field.name: values(field.type) for field in fields})
    raise TypeError(info)


MESSAGES: st.SearchStrategy[Message] = st.one_of(*(values(inspect.type_info(kind)) for kind in KINDS))
OBJECTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["type", "request_id", "turns", "sampling", "items", "version", "name"])
            | st.text(max_size=4),
            inner | st.sampled_from([kind.__name__ for kind in KINDS]),
            max_size=6,
        )
    ),
    max_leaves=12,
)


def frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(ends)]


def test_every_message_of_the_protocol_is_known() -> None:
    in_unions = {kind for union in UNIONS for kind in getattr(union, "__args__", (union,))}
    assert set(KINDS) == in_unions
    assert len(KINDS) > 10


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
def test_a_strategy_for_every_message(kind: type[Message]) -> None:
    assert isinstance(values(inspect.type_info(kind)), st.SearchStrategy)


@given(st.lists(MESSAGES, max_size=4), st.lists(st.integers(0, 10**6), max_size=8))
def test_round_trip_in_any_pieces(sent: list[Message], places: list[int]) -> None:
    decoder: Decoder[Message] = Decoder(ANYTHING)
    stream = b"".join(map(encode, sent))
    received = [message for piece in cut(stream, places) for message in decoder.feed(piece)]
    assert received == sent
    assert [type(message) for message in received] == [type(message) for message in sent]


@given(st.sampled_from(UNIONS), st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_arbitrary_bytes(union: Any, data: bytes, places: list[int]) -> None:
    decoder: Decoder[Message] = Decoder(union)
    try:
        found = [message for piece in cut(data, places) for message in decoder.feed(piece)]
    except FrameError:
        return
    assert all(isinstance(message, union) for message in found)


@given(st.sampled_from(UNIONS), st.binary(max_size=100) | OBJECTS.map(msgspec.msgpack.encode))
def test_arbitrary_bodies_in_a_good_frame(union: Any, body: bytes) -> None:
    try:
        found = Decoder[Message](union).feed(frame(body))
    except FrameError:
        return
    assert len(found) == 1
    assert isinstance(found[0], union)


@given(MESSAGES, st.data())
def test_a_damaged_frame(message: Message, data: st.DataObject) -> None:
    good = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    decoder: Decoder[Message] = Decoder(ANYTHING)
    try:
        found = decoder.feed(bytes(good))
    except FrameError:
        return
    assert all(isinstance(each, Message) for each in found)


@given(st.integers(FRAME_LIMIT_BYTES + 1, 2**32 - 1))
def test_a_length_beyond_the_limit_is_refused_before_the_body(length: int) -> None:
    with pytest.raises(FrameError, match=f"{length} bytes"):
        Decoder[Message](ToSupervisor).feed(struct.pack(">I", length))


def test_a_length_at_the_limit_is_waited_for() -> None:
    decoder: Decoder[Message] = Decoder(ToSupervisor)
    assert decoder.feed(struct.pack(">I", FRAME_LIMIT_BYTES)) == []


def test_a_message_beyond_the_limit_is_not_sent() -> None:
    long = Turn("user", "x" * 200_000)
    with pytest.raises(FrameError, match=r"Generate of .* bytes"):
        encode(Generate(request_id="r", turns=[long] * 6, sampling=Sampling()))


@pytest.mark.parametrize("depth", [1_000, FRAME_LIMIT_BYTES - 16])
@pytest.mark.parametrize(
    "start", [b"", b"\x81\xa1x", b"\x82\xa4type\xa5Hello\xa1x"], ids=["bare", "key", "late"]
)
def test_deep_nesting(depth: int, start: bytes) -> None:
    with pytest.raises(FrameError, match="not a message"):
        Decoder[Message](ToSupervisor).feed(frame(start + b"\x91" * depth))


@pytest.mark.parametrize(
    "body",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff\xa4type\xa6Tokens",
        b"\x82\xa4type\xa6Tokens\xa5items\xdd\xff\xff\xff\xff",
        b"\x82\xa4type\xa6Tokens\xa5items\xc6\xff\xff\xff\xff",
        b"\x82\xa4type\xa6Tokens\xa5items\x91\x92\xa1\xff\xa1a",
        b"",
    ],
    ids=["array", "map", "items", "bytes", "utf-8", "empty"],
)
def test_lengths_that_lie(body: bytes) -> None:
    with pytest.raises(FrameError):
        Decoder[Message](messages.FromWorker).feed(frame(body))


def test_messages_of_another_connection_are_refused() -> None:
    with pytest.raises(FrameError, match="Tokens"):
        Decoder[Message](ToSupervisor).feed(encode(Tokens(items=[])))


def test_unknown_fields_are_left_out() -> None:
    """A newer peer of the same version may say more."""
    body = msgspec.msgpack.encode({"type": "Hello", "version": 1, "name": "n", "more": [1, {"a": 2}]})
    assert Decoder[Message](ToSupervisor).feed(frame(body)) == [Hello(version=1, name="n")]


@pytest.mark.parametrize("kind", Confidential.__subclasses__(), ids=lambda kind: str(kind.__name__))
def test_nobody_sees_a_secret_by_accident(kind: type[Message]) -> None:
    fields = {field.name: "zehn-geheim" for field in msgspec.structs.fields(kind)}
    message = kind(**fields)
    seen = f"{message} {message!r} {[message]} {message.__rich_repr__()}"
    assert "geheim" not in seen
    assert kind.__name__ in seen


def test_a_refused_login_quotes_no_password() -> None:
    good = Login(request_id="a", name="n", password="zehn-geheim", line="ttyGS0", usb=True)
    fields = msgspec.to_builtins(good) | {"line": "../" * 100}
    with pytest.raises(FrameError) as caught:
        Decoder[Message](ToSupervisor).feed(frame(msgspec.msgpack.encode(fields)))
    fields = msgspec.to_builtins(good) | {"password": "zehn-geheim" * 100}
    with pytest.raises(FrameError) as too_long:
        Decoder[Message](ToSupervisor).feed(frame(msgspec.msgpack.encode(fields)))
    assert "geheim" not in f"{caught.value} {too_long.value}"
