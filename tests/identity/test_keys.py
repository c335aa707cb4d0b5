"""API keys in the database."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from appliance.identity import keys as keys_module
from appliance.identity.errors import UnknownRole
from appliance.identity.key_cache import KeyCache
from appliance.identity.key_format import new_key
from appliance.identity.keys import LAST_USED_RESOLUTION_MS, ApiKeys, stored_key
from appliance.identity.roles import Role
from appliance.paths import Paths
from appliance.storage import api_keys
from appliance.storage.api_keys import insert_key
from appliance.storage.database import Database
from appliance.storage.errors import DatabaseFull, UnstorableText


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s

    def ms(self) -> int:
        return int(self.now_s * 1000)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    with Database.open(Paths.under(tmp_path_factory.mktemp("state"))) as database:
        database.upgrade()
        yield database


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def keys(database: Database, clock: Clock) -> ApiKeys:
    return ApiKeys(database, now_ms=clock.ms, clock=clock)


@contextmanager
def reads_counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    reads: list[str] = []
    real = api_keys.find_key

    def find(connection: object, key_id: str) -> object:
        reads.append(key_id)
        return real(connection, key_id)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(keys_module, "find_key", find)
        yield reads


def other_secret(text: str) -> str:
    return text[:-43] + ("B" if text[-43] == "A" else "A") + text[-42:]


@pytest.mark.parametrize("role", list(Role))
def test_a_key_is_verified(keys: ApiKeys, role: Role) -> None:
    key, text = keys.create(f"a {role}", role)
    verified = keys.verify(text)
    assert verified is not None
    assert (verified.id, verified.name, verified.role) == (key.id, f"a {role}", role)
    assert text.startswith(f"cr_{key.id}_")
    assert key.id in {listed.id for listed in keys.list()}


def test_wrong_keys_are_none(keys: ApiKeys) -> None:
    _, text = keys.create("name", Role.USER)
    assert keys.verify(other_secret(text)) is None
    assert keys.verify(text)
    assert keys.verify(other_secret(text)) is None  # now that the right one is in the cache
    assert keys.verify(new_key().text()) is None
    assert keys.verify(text + "a" * 300) is None


@settings(max_examples=50, deadline=None)
@given(st.one_of(st.text(max_size=300), st.from_regex(r"cr_[a-z2-9]{8}_[A-Za-z0-9_\-]{43}")))
@example("cr_\ud800")
@example("cr_aaaaaaaa_" + "\0" * 43)
@example("cr_aaaaaaaa_" + "é" * 43)
@example("cr_" * 1000)
def test_any_string_is_just_none(keys: ApiKeys, text: str) -> None:
    assert keys.verify(text) is None


def test_the_comparison_takes_constant_time(keys: ApiKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return real(left, right)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    _, text = keys.create("name", Role.USER)
    for attempt in (text, other_secret(text), new_key().text()):
        keys.verify(attempt)
    assert [len(left) == len(right) == 32 for left, right in compared] == [True] * 3
    assert compared[2][1] == bytes(32)  # the dummy for the unknown id


def test_a_revoked_key_ends_at_once(keys: ApiKeys, clock: Clock) -> None:
    key, text = keys.create("name", Role.GUEST)
    assert keys.verify(text)
    assert keys.revoke(key.id) is True
    assert keys.verify(text) is None
    assert keys.revoke(key.id) is False
    assert keys.revoke("unknown") is False
    assert keys.revoke("lone\ud800") is False
    (listed,) = (listed for listed in keys.list() if listed.id == key.id)
    assert listed.revoked_at == clock.ms()


def test_requests_read_the_database_once_in_five_seconds(
    keys: ApiKeys, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, text = keys.create("name", Role.USER)
    with reads_counted(monkeypatch) as reads:
        for _ in range(10):
            assert keys.verify(text)
        assert len(reads) == 1
        clock.now_s += 4.99
        assert keys.verify(text)
        assert len(reads) == 1
        clock.now_s += 0.02
        assert keys.verify(text)
        assert len(reads) == 2


def test_a_key_is_remembered_without_the_database(keys: ApiKeys, clock: Clock) -> None:
    key, text = keys.create("phone", Role.USER)
    assert keys.remembered(text) is None, "nobody has verified it yet"
    verified = keys.verify(text)
    assert verified is not None
    assert keys.remembered(text) == verified
    wrong = text[:-1] + ("a" if text[-1] != "a" else "b")
    assert keys.remembered(wrong) is None
    assert keys.remembered("nonsense") is None
    clock.now_s += 5
    assert keys.remembered(text) is None
    assert keys.verify(text) is not None
    keys.revoke(key.id)
    assert keys.remembered(text) is None


def test_a_key_revoked_by_another_process_lives_for_five_seconds(
    database: Database, keys: ApiKeys, clock: Clock
) -> None:
    key, text = keys.create("name", Role.USER)
    assert keys.verify(text)
    ApiKeys(database).revoke(key.id)
    assert keys.verify(text)
    clock.now_s += 5
    assert keys.verify(text) is None


def test_the_cache_is_bounded_and_keeps_what_is_used(clock: Clock) -> None:
    cache = KeyCache(clock, size=2)
    first, second, third = (stored_key(new_key(), "name", Role.USER, 0) for _ in range(3))
    cache.put(first, clock())
    cache.put(second, clock())
    assert cache.get(first.id) == first
    cache.put(third, clock())
    assert len(cache) == 2
    assert cache.get(second.id) is None
    assert cache.get(first.id) == first
    cache.forget(first.id)
    cache.forget("unknown")
    assert cache.get(first.id) is None


def test_wrong_keys_do_not_fill_the_cache(keys: ApiKeys) -> None:
    before = len(keys._cache)
    _, text = keys.create("name", Role.USER)
    for attempt in (other_secret(text), new_key().text()):
        keys.verify(attempt)
    assert len(keys._cache) == before


def test_the_last_use_is_noted_once_an_hour(keys: ApiKeys, clock: Clock) -> None:
    key, text = keys.create("name", Role.USER)

    def last_used() -> int | None:
        return next(listed.last_used_at for listed in keys.list() if listed.id == key.id)

    assert last_used() is None
    keys.verify(text)
    first = clock.ms()
    assert last_used() == first
    clock.now_s += 60
    keys.verify(text)
    assert last_used() == first
    clock.now_s += LAST_USED_RESOLUTION_MS / 1000
    keys.verify(text)
    assert last_used() == clock.ms()


def test_a_full_disk_does_not_lock_the_owner_out(
    keys: ApiKeys, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, text = keys.create("name", Role.ADMIN)

    def touch(*_: object) -> None:
        raise DatabaseFull("The disk is full")

    monkeypatch.setattr(keys_module, "touch_key", touch)
    assert keys.verify(text)
    assert "The disk is full" in caplog.text


def test_a_role_of_newer_software_is_not_honoured(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Database.open(Paths.under(tmp_path_factory.mktemp("newer"))) as database:
        database.upgrade()
        text, name = new_key(), "name"
        stored = stored_key(text, name, Role.ADMIN, 0)
        with database.writing() as connection:
            insert_key(
                connection,
                type(stored)(
                    id=text.id, name=name, role="emperor", secret_sha256=text.digest(), created_at=0
                ),
            )
        with pytest.raises(UnknownRole, match="emperor"):
            ApiKeys(database).verify(text.text())


def test_a_name_with_a_lone_surrogate_is_refused(keys: ApiKeys) -> None:
    with pytest.raises(UnstorableText):
        keys.create("\udfff", Role.USER)


def test_the_secret_is_shown_and_stored_nowhere(
    database: Database, keys: ApiKeys, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key, text = keys.create("name", Role.USER)
    secret = text.rsplit(f"_{key.id}_", 1)[1]
    keys.verify(text)
    with database.reading() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM api_keys").all()
    stored = keys._find(key.id)
    assert stored is not None
    assert repr(stored.secret_sha256) not in repr(stored)
    for shown in (repr(key), repr(keys.list()), repr(stored), repr(rows), caplog.text):
        assert secret not in shown
