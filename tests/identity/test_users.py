"""The file of local users."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from hypothesis import given
from hypothesis import strategies as st

from appliance.identity.errors import (
    BadUser,
    LastAdmin,
    NoSuchUser,
    UserExists,
    UsersExist,
    UsersUnreadable,
    UsersUnwritable,
)
from appliance.identity.passwords import hash_password
from appliance.identity.roles import Role
from appliance.identity.users import FILE_LIMIT_BYTES, USERS_LIMIT, User, UserFile

PASSWORD = "coral and reef"

#: Made once: a hash takes its time.
HASH = hash_password(PASSWORD)


def row(name: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "role": "admin", "created_at": 5.0, "password": HASH, **changes}


def content(*rows: dict[str, Any]) -> bytes:
    return json.dumps({"version": 1, "users": rows}).encode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "supervisor/users.json"


@pytest.fixture
def users(path: Path) -> UserFile:
    return UserFile(path, now=lambda: 1234.5)


def test_nobody_at_first(users: UserFile, path: Path) -> None:
    assert users.all() == []
    assert users.verify("anna", PASSWORD) is None
    assert not path.exists()


def test_from_the_first_user_to_the_last(users: UserFile, path: Path) -> None:
    anna = users.add_first("anna", PASSWORD)
    assert anna == User(name="anna", role=Role.ADMIN, created_at=1234.5)
    with pytest.raises(UsersExist, match="There are users already"):
        users.add_first("eve", PASSWORD)
    bert = users.add("bert-2", PASSWORD, Role.GUEST)
    assert users.all() == UserFile(path).all() == [anna, bert]
    assert path.stat().st_mode & 0o777 == 0o600
    assert PASSWORD.encode() not in path.read_bytes()

    assert users.verify("anna", PASSWORD) == anna
    assert users.verify("bert-2", "wrong") is None
    assert users.verify("nobody", PASSWORD) is None
    assert users.verify("", "") is None

    users.set_password("bert-2", "another one")
    assert users.verify("bert-2", PASSWORD) is None
    assert users.verify("bert-2", "another one") == bert

    with pytest.raises(LastAdmin, match="anna is the last administrator"):
        users.remove("anna")
    users.remove("bert-2")
    assert users.all() == [anna]
    users.add("carl", PASSWORD, Role.ADMIN)
    users.remove("anna")
    assert [user.name for user in users.all()] == ["carl"]


@pytest.mark.parametrize(
    "name", ["", "Anna", "1anna", "-anna", "an na", "anna\n", "änna", "a" * 33, "../anna", "\x1b[2J"]
)
def test_what_is_no_name(users: UserFile, path: Path, name: str) -> None:
    with pytest.raises(BadUser, match="A name begins with a small letter"):
        users.add(name, PASSWORD, Role.ADMIN)
    assert not path.exists()


def test_what_is_no_user(users: UserFile) -> None:
    with pytest.raises(BadUser, match="at least 8"):
        users.add("anna", "short", Role.ADMIN)
    with pytest.raises(BadUser, match="password is the name"):
        users.add("anna-anna", "Anna-Anna", Role.ADMIN)
    with pytest.raises(BadUser, match="The role peer is none of admin, user, guest"):
        users.add("anna", PASSWORD, Role.PEER)
    with pytest.raises(BadUser, match="first user must be an administrator"):
        users.add("anna", PASSWORD, Role.USER)
    users.add("anna", PASSWORD, Role.ADMIN)
    with pytest.raises(UserExists, match="There is a user anna already"):
        users.add("anna", PASSWORD, Role.USER)
    with pytest.raises(NoSuchUser, match=r"No user is called 'bert'. There are: anna"):
        users.set_password("bert", PASSWORD)
    with pytest.raises(NoSuchUser, match="No user is called 'bert'"):
        users.remove("bert")
    with pytest.raises(BadUser, match="at least 8"):
        users.set_password("anna", "short")
    assert users.verify("anna", PASSWORD) is not None


def test_there_is_a_limit(users: UserFile, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(content(*(row(f"u{number}") for number in range(USERS_LIMIT))))
    with pytest.raises(BadUser, match=f"There are {USERS_LIMIT} users already"):
        users.add("anna", PASSWORD, Role.ADMIN)
    users.set_password("u0", "coral and coral")  # as long as a file of ours becomes
    assert len(users.all()) == USERS_LIMIT


def test_old_hashes_are_made_anew(users: UserFile, path: Path) -> None:
    weak = PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash(PASSWORD)
    path.parent.mkdir()
    path.write_bytes(content(row("anna", password=weak), row("bert", password=weak)))
    assert users.verify("anna", "wrong") is None
    assert path.read_bytes().decode().count("m=8192") == 2
    assert users.verify("anna", PASSWORD) is not None
    assert path.read_bytes().decode().count("m=8192") == 1
    assert users.verify("anna", PASSWORD) is not None


def test_a_full_disk_locks_nobody_out(
    users: UserFile, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    weak = PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash(PASSWORD)
    path.parent.mkdir()
    path.write_bytes(content(row("anna", password=weak)))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("appliance.identity.users.write_atomically", full)
    with caplog.at_level(logging.WARNING):
        assert users.verify("anna", PASSWORD) is not None
    assert "No space left on device" in caplog.text
    with pytest.raises(UsersUnwritable, match=r"No space left on device\. Nothing was changed"):
        users.set_password("anna", "another one")
    assert users.verify("anna", PASSWORD) is not None


def test_an_unknown_name_takes_as_long_as_a_wrong_password(users: UserFile) -> None:
    users.add_first("anna", PASSWORD)

    def fastest_s(name: str) -> float:
        def once() -> float:
            before = time.thread_time()
            assert users.verify(name, "wrong") is None
            return time.thread_time() - before

        return min(once() for _ in range(5))

    known, unknown = fastest_s("anna"), fastest_s("nobody")
    assert unknown > known / 2
    assert known > unknown / 2


BROKEN = {
    "empty": b"",
    "nothing": b"null",
    "half": content(row("anna"))[:-20],
    "zeros": bytes(300),
    "no users": content(),
    "no list": b'{"version": 1}',
    "another version": content(row("anna")).replace(b'"version": 1', b'"version": 2'),
    "twice": content(row("anna"), row("anna")),
    "no administrator": content(row("anna", role="user")),
    "a peer": content(row("anna"), row("tower", role="peer")),
    "no role": content(row("anna", role="root")),
    "no name": content(row("")),
    "a bad name": content(row("../anna")),
    "a name and a line": content(row("anna\n")),
    "no hash": content(row("anna", password="geheim")),
    "a dear hash": content(row("anna", password=HASH.replace("m=19456", "m=19456000"))),
    "more": content(row("anna", home="/root")),
    "too many": content(*(row(f"u{number}") for number in range(USERS_LIMIT + 1))),
    "too long": content(row("anna")) + b" " * FILE_LIMIT_BYTES,
    "no UTF-8": content(row("anna")).replace(b"admin", b"adm\xff\xfe"),
    "deep": b"[" * 5000,
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_never_one_without_users(users: UserFile, path: Path, broken: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(broken)
    for attempt in (
        users.all,
        lambda: users.verify("anna", PASSWORD),
        lambda: users.add_first("eve", PASSWORD),
        lambda: users.add("eve", PASSWORD, Role.ADMIN),
        lambda: users.set_password("anna", "another one"),
        lambda: users.remove("anna"),
    ):
        with pytest.raises(UsersUnreadable, match=r"users\.json cannot be used: ") as caught:
            attempt()
        assert "Restore it from a backup" in str(caught.value)
        assert HASH.rpartition("$")[2] not in str(caught.value)
        assert "geheim" not in str(caught.value)
    assert path.read_bytes() == broken


def test_a_folder_in_its_place(users: UserFile, path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(UsersUnreadable, match="Is a directory"):
        users.all()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["version", "users", "name", "role", "created_at", "password"])
            | st.text(max_size=4),
            inner | st.sampled_from(["admin", "anna", HASH, 1]),
            max_size=5,
        )
    ),
    max_leaves=16,
)


@given(
    st.binary(max_size=200)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.lists(
        st.fixed_dictionaries(
            {
                "name": st.sampled_from(["anna", "bert", "", "Anna"]) | st.text(max_size=40),
                "role": st.sampled_from(["admin", "user", "guest", "peer", "x"]),
                "created_at": st.floats(allow_nan=False, allow_infinity=False) | st.none(),
                "password": st.just(HASH) | st.text(max_size=100),
            }
        ),
        max_size=4,
    ).map(lambda rows: content(*rows))
)
def test_whatever_is_in_the_file(data: bytes) -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        path = folder / "users.json"
        path.write_bytes(data)
        try:
            found = UserFile(path).all()
        except UsersUnreadable:
            return
        assert any(user.role is Role.ADMIN for user in found)
        assert len({user.name for user in found}) == len(found)
        assert all(user.name and user.name.isascii() and user.role is not Role.PEER for user in found)
    finally:
        shutil.rmtree(folder)
