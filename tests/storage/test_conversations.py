"""Sessions and messages."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.paths import Paths
from appliance.storage.conversations import Conversations, MessageRole, Session
from appliance.storage.database import Database
from appliance.storage.errors import NoSuchSession, StorageError, UnstorableText

STORABLE = st.text(st.characters(codec="utf-8"), max_size=200)
SURROGATES = st.characters(categories=["Cs"])


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with Database.open(Paths.under(tmp_path_factory.mktemp("state"))) as database:
        database.upgrade()
        yield database


@pytest.fixture(scope="module")
def conversations(database: Database) -> Conversations:
    ticks = itertools.count(1_000)
    return Conversations(database, now_ms=lambda: next(ticks))


@pytest.fixture
def session(conversations: Conversations, request: pytest.FixtureRequest) -> Session:
    return conversations.create(f"owner of {request.node.name}", "persona")


def append(conversations: Conversations, session_id: str, question: str, reply: str) -> None:
    conversations.append_turn(
        session_id,
        question,
        reply,
        request_id="request",
        finish_reason="stop",
        prompt_tokens=3,
        completion_tokens=5,
    )


def test_a_new_session(conversations: Conversations, session: Session) -> None:
    assert conversations.get(session.id) == session
    assert session.created_at == session.updated_at
    assert (session.persona_id, session.title) == ("persona", "")
    assert session.id.startswith("ses-")
    assert len(session.id) == 26
    assert conversations.history(session.id) == []
    assert conversations.create(session.owner, "persona").id != session.id


def test_a_turn(conversations: Conversations, session: Session) -> None:
    append(conversations, session.id, "Hello?", "Ahoy.")
    question, reply = conversations.history(session.id)
    assert (question.role, question.content, question.position) == (MessageRole.USER, "Hello?", 0)
    assert (question.finish_reason, question.prompt_tokens, question.completion_tokens) == (None, None, None)
    assert (reply.role, reply.content, reply.position) == (MessageRole.ASSISTANT, "Ahoy.", 1)
    assert (reply.finish_reason, reply.prompt_tokens, reply.completion_tokens) == ("stop", 3, 5)
    assert question.request_id == reply.request_id == "request"
    assert question.created_at == reply.created_at > session.created_at
    touched = conversations.get(session.id)
    assert touched is not None
    assert touched.updated_at == reply.created_at
    assert touched.created_at == session.created_at


def test_the_newest_messages_in_order(conversations: Conversations, session: Session) -> None:
    for number in range(3):
        append(conversations, session.id, f"q{number}", f"a{number}")
    everything = [message.content for message in conversations.history(session.id)]
    assert everything == ["q0", "a0", "q1", "a1", "q2", "a2"]
    for limit in (0, 1, 3, 6, 7, 2**70):
        newest = [message.content for message in conversations.history(session.id, limit=limit)]
        assert newest == everything[max(0, 6 - limit) :]
    with pytest.raises(ValueError, match="at least 0"):
        conversations.history(session.id, limit=-1)
    for before in (0, 1, len(everything) - 1, len(everything), 10**9):
        assert [
            message.content for message in conversations.history(session.id, before=before)
        ] == everything[:before]


def test_sessions_of_an_owner_the_last_used_first(conversations: Conversations) -> None:
    ids = [conversations.create("captain", "persona").id for _ in range(3)]
    conversations.create("stranger", "persona")
    append(conversations, ids[0], "q", "a")
    assert [session.id for session in conversations.sessions("captain", 10)] == [ids[0], ids[2], ids[1]]
    assert [session.id for session in conversations.sessions("captain", 1)] == [ids[0]]
    assert conversations.sessions("nobody") == []


def test_deleting_takes_the_messages_along(
    database: Database, conversations: Conversations, session: Session
) -> None:
    append(conversations, session.id, "q", "a")
    assert conversations.delete(session.id) is True
    assert conversations.delete(session.id) is False
    assert conversations.get(session.id) is None
    with database.reading() as connection:
        left = connection.exec_driver_sql(
            "SELECT count(*) FROM messages WHERE session_id = ?", (session.id,)
        ).scalar_one()
    assert left == 0


@pytest.mark.parametrize("session_id", ["", "unknown", "nul\0", "lone\ud800", "x" * 100_000])
def test_an_unknown_session(conversations: Conversations, session_id: str) -> None:
    assert conversations.get(session_id) is None
    assert conversations.history(session_id) == []
    assert conversations.delete(session_id) is False
    with pytest.raises(NoSuchSession) as caught:
        append(conversations, session_id, "q", "a")
    str(caught.value).encode()
    assert caught.value.remedy


@settings(max_examples=25, deadline=None)
@given(owner=STORABLE, question=STORABLE, reply=STORABLE)
def test_any_text_comes_back_as_it_was(
    conversations: Conversations, owner: str, question: str, reply: str
) -> None:
    session = conversations.create(owner, owner)
    append(conversations, session.id, question, reply)
    assert [message.content for message in conversations.history(session.id)] == [question, reply]
    stored = conversations.get(session.id)
    assert stored is not None
    assert stored.owner == stored.persona_id == owner
    assert session.id in {found.id for found in conversations.sessions(owner)}


@pytest.mark.parametrize("text", ["\0", "a\0b", "\U0001f419\U0010ffff", "\ufeff\uffff", "e\u0301", "'; --"])
def test_peculiar_text(conversations: Conversations, session: Session, text: str) -> None:
    append(conversations, session.id, text, text + text)
    assert [message.content for message in conversations.history(session.id)] == [text, text + text]


@settings(max_examples=10, deadline=None)
@given(before=STORABLE, surrogate=SURROGATES, after=STORABLE)
def test_lone_surrogates_are_refused(
    conversations: Conversations, before: str, surrogate: str, after: str
) -> None:
    text = before + surrogate + after
    session = conversations.create("owner", "persona")
    for question, reply in ((text, "a"), ("q", text)):
        with pytest.raises(UnstorableText) as caught:
            append(conversations, session.id, question, reply)
        assert isinstance(caught.value, StorageError)
        assert caught.value.position == len(before)
        str(caught.value).encode()
    with pytest.raises(UnstorableText):
        conversations.create(text, "persona")
    assert conversations.history(session.id) == []
    assert conversations.sessions(text) == []


def test_a_long_message(conversations: Conversations, session: Session) -> None:
    text = "\U0001f419" * 262_144
    append(conversations, session.id, text, "")
    assert conversations.history(session.id)[0].content == text


def test_half_a_turn_is_never_stored(database: Database) -> None:
    conversations = Conversations(database)
    session = conversations.create("owner", "persona")
    with database.writing() as connection:
        connection.exec_driver_sql(
            "CREATE TEMP TRIGGER no_replies BEFORE INSERT ON messages WHEN new.role = 'assistant'"
            " BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    try:
        with pytest.raises(StorageError):
            append(conversations, session.id, "q", "a")
    finally:
        with database.writing() as connection:
            connection.exec_driver_sql("DROP TRIGGER no_replies")
    assert conversations.history(session.id) == []
    assert conversations.get(session.id) == session
