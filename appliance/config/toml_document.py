"""TOML text to a `Document`: values from `tomli`, lines from a second pass over the text."""

from __future__ import annotations

import re

from appliance.config.document import DEPTH_LIMIT, Document, TooDeep
from appliance.config.errors import Problem, SourceError
from appliance.config.toml_lines import toml_lines

#: Python refuses to convert integers of more digits (sys.int_info.default_max_str_digits); tomli does not
#: catch that.
_HUGE_NUMBER = re.compile(r"[0-9_]{4300}")
_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


def parse_toml(file: str, text: str) -> Document:
    """Raises SourceError with the one problem that keeps `text` from being TOML."""
    import tomli

    try:
        # First, because it bounds the nesting: older tomli takes cubic time for keys of many parts.
        lines = toml_lines(text)
        return Document(file, tomli.loads(text), lines, "table")
    except TooDeep as error:
        message = f"is nested too deeply, expected at most {DEPTH_LIMIT} levels"
        raise SourceError([Problem(file, error.line, "", message)]) from None
    except tomli.TOMLDecodeError as error:
        line, message = _placed(str(error), text)
        raise SourceError([Problem(file, line, "", f"{message}, expected valid TOML")]) from None
    except RecursionError:
        raise SourceError([Problem(file, 1, "", "is nested too deeply, expected valid TOML")]) from None
    except ValueError:
        huge = _HUGE_NUMBER.search(text)
        line = text.count("\n", 0, huge.start()) + 1 if huge else 1
        raise SourceError([Problem(file, line, "", "holds a number too long, expected valid TOML")]) from None


def _placed(message: str, text: str) -> tuple[int, str]:
    """tomli writes the place at the end of its message; older releases do so nowhere else."""
    match = _PLACE.search(message)
    if match is None:
        return 1, message
    line = int(match[1]) if match[1] else text.rstrip("\n").count("\n") + 1
    reason = message[: match.start()]
    return line, reason[:1].lower() + reason[1:]
