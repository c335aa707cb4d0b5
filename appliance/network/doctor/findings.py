"""How a finding is made; what one is stands in `wire.messages`, for it is shown where nothing is examined."""

from __future__ import annotations

from appliance.wire.messages import Check, Finding, Outcome


def ok(check: Check, subject: str, symptom: str) -> Finding:
    """All is well."""
    return Finding(check=check, subject=subject, outcome=Outcome.OK, symptom=symptom)


def skipped(check: Check, subject: str, why: str) -> Finding:
    """It was not looked at."""
    return Finding(check=check, subject=subject, outcome=Outcome.SKIPPED, symptom=why)


def warning(check: Check, subject: str, symptom: str, cause: str, remedy: str) -> Finding:
    """It works, but not as it should or for long."""
    return Finding(
        check=check, subject=subject, outcome=Outcome.WARNING, symptom=symptom, cause=cause, remedy=remedy
    )


def failed(check: Check, subject: str, symptom: str, cause: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(
        check=check, subject=subject, outcome=Outcome.FAILED, symptom=symptom, cause=cause, remedy=remedy
    )
