"""Who may use a device node: decided from its owner, group and mode, for a user that we are not."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class User:
    """Somebody who opens device nodes: the user of the workers."""

    name: str
    uid: int
    groups: frozenset[int]

    @classmethod
    def named(cls, name: str | None) -> User:
        """The user of that name with all groups of theirs; this process's own when there is no name. KeyError."""
        if name is None:
            return cls(_user_name(os.geteuid()), os.geteuid(), frozenset({os.getegid(), *os.getgroups()}))
        entry = pwd.getpwnam(name)
        return cls(name, entry.pw_uid, frozenset(os.getgrouplist(name, entry.pw_gid)))


def why_denied(node: Path, shown: str, user: User) -> str:
    """Why `user` may not read and write `node`, called `shown`; empty when they may. OSError when it is not there."""
    status = node.stat()
    if user.uid == 0:
        return ""
    mode = status.st_mode
    if status.st_uid == user.uid:
        allowed = mode & (stat.S_IRUSR | stat.S_IWUSR) == stat.S_IRUSR | stat.S_IWUSR
    elif status.st_gid in user.groups:
        allowed = mode & (stat.S_IRGRP | stat.S_IWGRP) == stat.S_IRGRP | stat.S_IWGRP
    else:
        allowed = mode & (stat.S_IROTH | stat.S_IWOTH) == stat.S_IROTH | stat.S_IWOTH
    if allowed:
        return ""
    owner, group = _user_name(status.st_uid), _group_name(status.st_gid)
    return f"{shown} is {owner}:{group} with mode {stat.S_IMODE(mode):04o}: user {user.name} may not use it"


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
