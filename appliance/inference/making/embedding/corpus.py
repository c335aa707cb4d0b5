"""The text that the embedding is made from and measured on: Debian's package descriptions, and the manuals and documentation that
this machine has. It is read when it is needed and never stored in the repository.

Held out by source package: what the SHA-256 of its name says (`part_of`) is the same on every machine and in every release, and
everything that belongs to a held-out package, or says the same, stays out of the training.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec

#: Sixteenths of all source packages: one for the figures in the card, one for choices made on the way.
TEST, VALIDATION = 0, 1

#: Longer texts are cut for teacher and student alike: some 128 of the teacher's tokens.
TEXT_LIMIT_CHARACTERS = 600

#: What is taken of one documentation file or package, so that none drowns the others.
FILE_LIMIT_BYTES = 400_000
PARAGRAPHS_OF_A_FILE = 6
TEXTS_OF_A_PACKAGE = 100

#: Debian 12 has some 32,000 source packages that say something; with far fewer, lists are missing.
RELEASE_AT_LEAST = 20_000


class Pair(msgspec.Struct, frozen=True):
    """A one-line description and the long one of the same thing. `source` is the source package it belongs to."""

    source: str
    line: str
    text: str


def part_of(source: str) -> str:
    """`train`, `test` or `validation`, from the source package's name alone."""
    number = int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "big") % 16
    return {TEST: "test", VALIDATION: "validation"}.get(number, "train")


def saying(text: str) -> str:
    """What two packages that say the same have in common: `gcc-11` and `gcc-12` do."""
    return "".join(re.findall(r"[a-z]", text.lower()))[:100]


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """The paragraphs of a Debian control file, continued lines joined with newlines."""
    for paragraph in re.split(r"\n\n+", text):
        fields: dict[str, str] = {}
        key = ""
        for line in paragraph.splitlines():
            if line[:1] in " \t":
                if key:
                    fields[key] += "\n" + line[1:]
            else:
                key, _, value = line.partition(":")
                fields[key] = value.strip()
        if fields:
            yield fields


def plain(long: str) -> str:
    """A long description as running text: paragraphs and lists in one line."""
    lines = ["" if line.strip() == "." else line.strip(" *-") for line in long.splitlines()]
    return re.sub(r"\s+", " ", " ".join(lines)).strip()


def described(fields: dict[str, str], source: str) -> Pair | None:
    """What a stanza says of its package; None when that is a line only."""
    description = next(
        (value for key, value in fields.items() if key.startswith("Description") and "md5" not in key), ""
    )
    line, _, long = description.partition("\n")
    text = plain(long)
    if len(line) < 12 or len(text) < 60:
        return None
    return Pair(source, line.strip(), text[:TEXT_LIMIT_CHARACTERS])


def installed() -> list[Pair]:
    """The packages on this machine, from dpkg's own status file, which every Debian has."""
    text = Path("/var/lib/dpkg/status").read_text("utf-8", errors="replace")
    return one_of_each(stanzas(text), {})


def available(work: Path, at_least: int = RELEASE_AT_LEAST) -> list[Pair]:
    """All packages of the release, one of each source, from lists that `apt-get update` fetches into `work`: any user may. Once
    there, the lists stay, so that a run that was stopped goes on with the same texts; take `work` away for newer ones.

    Raises SystemExit when they have less than `at_least`.
    """
    # Absolute: a relative path would be one below /var/lib/apt.
    lists = (work / "apt-lists").resolve()
    if not lists.exists():
        fetch(lists)
    sources = {
        fields["Package"]: fields["Source"].partition(" ")[0]
        for fields in stanzas(_lists(lists, "_Packages"))
        if "Source" in fields
    }
    pairs = one_of_each(stanzas(_lists(lists, "_Translation-en")), sources)
    if len(pairs) < at_least:
        shutil.rmtree(lists)
        raise SystemExit(
            f"the package lists that `apt-get update` fetched describe {len(pairs):,} packages, not {at_least:,} or more: "
            "see above for what it could not fetch, and whether /etc/apt names the whole release (main); then try again"
        )
    return pairs


def fetch(lists: Path) -> None:
    """Package lists of this machine's sources, with English descriptions, into a folder that is there when all of them are."""
    print("fetching Debian's package lists", flush=True)
    partial = lists.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "partial").mkdir(parents=True)
    options = [f"Dir::State::lists={partial}", "Acquire::Languages=en", "Debug::NoLocking=1"]
    command = ["apt-get", "update", "-qq", *(word for option in options for word in ("-o", option))]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        raise SystemExit(
            "the training text comes from Debian's package lists, and there is no apt-get to fetch them"
        ) from None
    except subprocess.CalledProcessError:
        raise SystemExit(
            "apt-get update failed (see above): the training text comes from Debian's package lists"
        ) from None
    partial.rename(lists)


def _lists(folder: Path, kind: str) -> str:
    paths = sorted(path for path in folder.iterdir() if kind in path.name)
    command = ["/usr/lib/apt/apt-helper", "cat-file", *map(str, paths)]
    return subprocess.run(command, check=True, capture_output=True).stdout.decode("utf-8", "replace")


def one_of_each(found: Iterator[dict[str, str]], sources: dict[str, str]) -> list[Pair]:
    """One package of each source: the one with the shortest name. Those that say the same as another are left out."""
    best: dict[str, tuple[tuple[int, str], Pair]] = {}
    for fields in found:
        name = fields.get("Package", "")
        source = sources.get(name) or fields.get("Source", name).partition(" ")[0]
        pair = described(fields, source)
        if pair is not None:
            rank = (len(name), name)
            if source not in best or rank < best[source][0]:
                best[source] = rank, pair
    pairs: list[Pair] = []
    said: set[str] = set()
    # The held-out ones first: of two that say the same, the other one is lost to the training.
    for source in sorted(best, key=lambda each: (part_of(each) == "train", each)):
        pair = best[source][1]
        sayings = {saying(pair.line), saying(pair.text)}
        if not sayings & said:
            pairs.append(pair)
        said |= sayings
    return pairs


def owners() -> dict[str, str]:
    """Source package of each installed binary package."""
    text = Path("/var/lib/dpkg/status").read_text("utf-8", errors="replace")
    return {
        fields["Package"]: fields.get("Source", fields["Package"]).partition(" ")[0]
        for fields in stanzas(text)
        if "Package" in fields
    }


def manuals() -> Iterator[Pair]:
    """NAME and DESCRIPTION of the manual pages here, each with the source package that brought it."""
    taken: dict[str, int] = {}
    for source, path in _files("/usr/share/man/man"):
        if taken.get(source, 0) < TEXTS_OF_A_PACKAGE and re.search(r"\.[1-9][a-z]*\.gz$", path.name):
            found = manual(_read(path))
            if found is not None:
                taken[source] = taken.get(source, 0) + 1
                yield Pair(source, *found)


def manual(roff: str) -> tuple[str, str] | None:
    """The NAME line, without the names, and the DESCRIPTION of a manual page in man or mdoc macros."""
    sections = re.split(r"^\.S[Hh]\s+\"?([^\"\n]*)\"?\s*$", roff, flags=re.MULTILINE)
    named = {key.strip().upper(): body for key, body in zip(sections[1::2], sections[2::2], strict=True)}
    line = unformatted(named.get("NAME", ""))
    _, dash, line = line.partition(" - ")
    text = unformatted(named.get("DESCRIPTION", ""))
    if not dash or len(line) < 12 or len(text) < 60:
        return None
    return line[:200], text[:TEXT_LIMIT_CHARACTERS]


_FONTS = re.compile(r"\\f(?:\[[^]]*\]|\(..|.)")
_ESCAPES = re.compile(r"\\(?:\[[^]]*\]|\(..|[&|^/,:%]|s[-+]?\d+|\*.)")


def unformatted(roff: str) -> str:
    """Running text of some roff: macros lose their names, requests and comments all."""
    words = []
    for line in roff.splitlines():
        line = line.partition('\\"')[0]
        if line.startswith((".", "'")):
            macro, _, rest = line[1:].strip().partition(" ")
            if macro == "Nd":
                words.append("-")
            if macro in {
                "B",
                "I",
                "BR",
                "IR",
                "RB",
                "RI",
                "BI",
                "IB",
                "SM",
                "Nm",
                "Nd",
                "Xr",
                "Pa",
                "Ar",
                "Fl",
                "Em",
                "Sy",
                "Dv",
            }:
                words.append(rest.replace('"', "").replace(" ,", ",").replace(" .", "."))
            continue
        words.append(line)
    text = " ".join(words).replace("\\-", "-").replace("\\e", "\\").replace("\\(em", "-")
    text = _ESCAPES.sub(" ", _FONTS.sub("", text))
    return re.sub(r"\s+", " ", text).strip()


def documentation() -> Iterator[tuple[str, str]]:
    """Paragraphs of running English from /usr/share/doc, each with its source package."""
    taken: dict[str, int] = {}
    for source, path in _files("/usr/share/doc/"):
        if not re.search(r"(README[^/]*|\.(txt|md|rst))(\.gz)?$", path.name):
            continue
        for paragraph in paragraphs(_read(path))[:PARAGRAPHS_OF_A_FILE]:
            if taken.get(source, 0) < TEXTS_OF_A_PACKAGE:
                taken[source] = taken.get(source, 0) + 1
                yield source, paragraph


def paragraphs(text: str) -> list[str]:
    """Those that are prose: words in sentences, not tables, code or licences."""
    found = []
    for block in re.split(r"\n\s*\n", text):
        line = re.sub(r"\s+", " ", block).strip()
        letters = sum(character.isalpha() or character == " " for character in line)
        if len(line) >= 80 and letters > 0.9 * len(line) and "copyright" not in line.lower():
            found.append(line[:TEXT_LIMIT_CHARACTERS])
    return found


def _files(prefix: str) -> Iterator[tuple[str, Path]]:
    """Files below a folder that packages brought, in the order of their names, each with its source package."""
    source_of = owners()
    found: dict[str, str] = {}
    for listing in sorted(Path("/var/lib/dpkg/info").glob("*.list")):
        source = source_of.get(listing.stem.partition(":")[0], listing.stem.partition(":")[0])
        for line in listing.read_text("utf-8", errors="replace").splitlines():
            if line.startswith(prefix):
                found[line] = source
    for name in sorted(found):
        path = Path(name)
        if path.is_file() and not path.is_symlink():
            yield found[name], path


def _read(path: Path) -> str:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return file.read(FILE_LIMIT_BYTES).decode("utf-8", "replace")
    except (OSError, EOFError):
        return ""


def our_lines() -> list[str]:
    """What people say to personas and what these answer, from the chat model's text: everyday English."""
    folder = Path(__file__).parents[1] / "chat" / "text"
    found = set()
    for path in sorted(folder.rglob("*.txt")):
        for line in path.read_text("utf-8").splitlines():
            line = re.sub(r"^\w+: ", "", line.strip())
            if len(line) >= 8 and not line.startswith("#") and "{" not in line and " " in line:
                found.add(line[:TEXT_LIMIT_CHARACTERS])
    return sorted(found)
