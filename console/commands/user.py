"""`user`: who may log in here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import get_args

from appliance.client.screen import table
from appliance.wire.messages import UserAdd, UserList, UserPassword, UserRemove, UserRole, Users
from console.context import Context
from console.errors import CommandFailed

from .command import Command, only, wrong_usage

#: A hash takes some 50 ms, and those who log in at the same moment take theirs.
CHANGE_TIMEOUT_S = 30.0

ROLES: tuple[UserRole, ...] = get_args(UserRole)


async def run(context: Context, words: Sequence[str]) -> None:
    action, rest = only(COMMAND, words, "list", "add", "passwd", "remove", names=2)
    name = rest[0][:64] if rest else ""
    match action, len(rest):
        case "list", 0:
            await _list(context)
        case "add", 1 | 2:
            role = next((each for each in ROLES if each == (rest[1] if rest[1:] else "user")), None)
            if role is None:
                raise CommandFailed(f"{rest[1]!r} is no role; there are: {', '.join(ROLES)}")
            password = await new_password(context, name)
            made = UserAdd(request_id="-", name=name, password=password, role=role)
            await context.order(made, timeout_s=CHANGE_TIMEOUT_S)
        case "passwd", 0 | 1:
            whose = name or context.person.name
            changed = UserPassword(request_id="-", name=whose, password=await new_password(context, whose))
            await context.order(changed, timeout_s=CHANGE_TIMEOUT_S)
        case "remove", 1:
            if await context.confirm(f"Remove {name}?"):
                await context.order(UserRemove(request_id="-", name=name), timeout_s=CHANGE_TIMEOUT_S)
        case _:
            raise wrong_usage(COMMAND)


async def _list(context: Context) -> None:
    found = (await context.control.ask(UserList(request_id="-"), Users)).users
    rows = [
        (each.name, each.role, time.strftime("%Y-%m-%d %H:%M", time.localtime(each.created_at)))
        for each in found
    ]
    context.terminal.show([table(("user", "role", "added"), rows)] if rows else ["No user yet."])


async def new_password(context: Context, name: str) -> str:
    """Asked for twice, never shown. CommandFailed when they differ."""
    password = await context.ask_hidden(f"New password of {name}: ")
    if await context.ask_hidden("Once more: ") != password:
        raise CommandFailed("these were two different passwords; nothing has changed")
    return password


def complete(words: Sequence[str], _known: object) -> Sequence[str]:
    if not words:
        return "list", "add", "passwd", "remove"
    return ROLES if words[0] == "add" and len(words) == 2 else ()


COMMAND = Command(
    "user",
    "who may log in here",
    (
        ("user", "lists them"),
        ("user add NAME [ROLE]", "adds one: admin, user (look and chat) or guest"),
        ("user passwd [NAME]", "gives one, or yourself, another password"),
        ("user remove NAME", "removes one"),
    ),
    run,
    complete,
)
