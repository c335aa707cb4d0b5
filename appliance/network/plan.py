"""From what is to what is wanted: which profiles are made, activated and taken away, in which order. Pure.

A profile of ours is never changed where it stands. Its successor is made beside it, in NetworkManager's memory alone, and
activated; when all is well it is saved and the old one deleted. Whenever the power fails, the disk has the old one or the new.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .profiles import Current, Desired, Found, Profile, Settings


@dataclass(frozen=True)
class Make:
    """A new profile. `old` is the one of ours that it takes the place of; empty: none. `activate`: its device is there."""

    profile: Profile
    old: str = ""
    activate: bool = True


@dataclass(frozen=True)
class Activate:
    """A profile that is as it should be, but does not run though it could."""

    uuid: str
    role: str
    interface: str


@dataclass(frozen=True)
class Remove:
    """A profile of ours that nobody wants any more. Deactivated at once, deleted when all is well."""

    uuid: str
    role: str


@dataclass(frozen=True)
class Filter:
    """The firewall: the whole table, for `nft -f -`; empty takes it away. `old` is what was there."""

    rules: str
    old: str


Step = Make | Activate | Remove | Filter


def plan(desired: Desired, current: Current) -> tuple[Step, ...]:
    """The steps in their order: what goes first makes room, parents come before what stands on them, the firewall is there before
    an interface that it guards. Empty when everything is as it should be."""
    wanted = {profile.role: profile for profile in desired.profiles}
    if len(wanted) != len(desired.profiles):
        raise ValueError("two profiles have one role")
    ours: dict[str, list[Found]] = {}
    for found in current.profiles:
        if found.role:
            ours.setdefault(found.role, []).append(found)

    steps: list[Step] = []
    if desired.firewall != current.firewall:
        steps.append(Filter(desired.firewall, current.firewall))
    made: set[str] = set()
    work: list[Step] = []
    for profile in in_order(desired.profiles):
        there = ours.get(profile.role, [])
        right = _right(profile, there)
        # What stands on a profile that is made anew would stand on the old one.
        renewed = not made.isdisjoint(profile.needs)
        device = current.device(profile.interface)
        possible = _possible(profile, device)
        if right is None or renewed:
            old = next((each for each in there if each.saved), there[0] if there else None)
            work.append(Make(profile, old.uuid if old else "", possible))
            made.add(profile.role)
            extra = [each for each in there if each is not old]
        else:
            if possible and not right.device:
                work.append(Activate(right.uuid, profile.role, profile.interface))
            extra = [each for each in there if each is not right]
        steps += [Remove(each.uuid, each.role) for each in extra]
    steps += [
        Remove(each.uuid, each.role)
        for role, several in ours.items()
        if role not in wanted
        for each in several
    ]
    return (*steps, *work)


def _right(profile: Profile, there: Iterable[Found]) -> Found | None:
    """The one that is what `profile` wants, on the disk, too; an active one rather than another."""
    fitting = [
        each
        for each in there
        if each.saved and each.settings == profile.settings and not profile.brings_other_secrets_than(each)
    ]
    return next((each for each in fitting if each.device), fitting[0] if fitting else None)


def _possible(profile: Profile, device: object) -> bool:
    """Whether it can be activated: what is made by activating it needs no device before."""
    return profile.kind in {"vlan", "bond"} or device is not None


def in_order(profiles: Iterable[Profile]) -> Iterator[Profile]:
    """Each after those that it needs, else as given. ValueError when they need one another."""
    waiting = list(profiles)
    names = {each.role for each in waiting}
    done: set[str] = set()
    while waiting:
        ready = next((each for each in waiting if done.issuperset(names.intersection(each.needs))), None)
        if ready is None:
            raise ValueError(f"{', '.join(each.role for each in waiting)} need one another")
        waiting.remove(ready)
        done.add(ready.role)
        yield ready


def described(steps: Iterable[Step], current: Current) -> list[str]:
    """For `net diff`: a line that says what is done, then those that say what changes. No secrets are in it."""
    ours = {each.uuid: each for each in current.profiles}
    lines: list[str] = []
    for step in steps:
        match step:
            case Make(profile, old, activate):
                before = ours[old].settings if old in ours else {}
                verb = "change" if before else "add"
                later = "" if activate else " (when the hardware is there)"
                lines.append(f"{verb} {profile.role} on {profile.interface}{later}")
                lines += [f"    {line}" for line in differences(before, profile.settings)]
                if old in ours and profile.brings_other_secrets_than(ours[old]):
                    lines.append("    another password")
            case Activate(_, role, interface):
                lines.append(f"activate {role} on {interface}")
            case Remove(uuid, role):
                lines.append(f"remove {role} ({ours[uuid].name if uuid in ours else uuid})")
            case Filter(rules, _):
                lines.append("replace the firewall" if rules else "take the firewall away")
    return lines


def differences(before: Settings, after: Settings) -> list[str]:
    """`- section.key: value` of what goes, `+ ...` of what comes."""
    lines = []
    for section in dict.fromkeys((*before, *after)):
        old, new = before.get(section, {}), after.get(section, {})
        for key in dict.fromkeys((*old, *new)):
            if old.get(key) == new.get(key):
                continue
            lines += [f"- {section}.{key}: {_shown(old[key])}"] if key in old else []
            lines += [f"+ {section}.{key}: {_shown(new[key])}"] if key in new else []
    return lines


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
