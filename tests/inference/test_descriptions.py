"""How the embedding's training text is read from what a Debian machine has."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from appliance.inference.making.embedding import corpus
from appliance.inference.making.embedding.corpus import Pair

STATUS = """Package: tool
Source: suite (1.2)
Status: install ok installed
Description: turns one thing into another
 This program reads a thing of one kind
 and writes it as another.
 .
 It can:
  * read
  * write

Package: tool-doc
Source: suite
Description: turns one thing into another (documentation)
 Everything that there is to know about the program and its files.

Package: empty
Description: says nothing more than that

Package: broken
Description
"""


def test_packages() -> None:
    (pair,) = corpus.one_of_each(corpus.stanzas(STATUS), {})
    assert pair == Pair(
        "suite",
        "turns one thing into another",
        "This program reads a thing of one kind and writes it as another. It can: read write",
    )


def test_of_two_that_say_the_same_the_held_out_one_stays() -> None:
    long = "It runs programs in a language that is good for texts, and says what is wrong with them."
    text = "\n\n".join(
        f"Package: {name}\nDescription: a language for texts, version {number}\n {long}"
        for number, name in enumerate(("awk", "bash", "mawk"))
    )
    (pair,) = corpus.one_of_each(corpus.stanzas(text), {})
    assert [corpus.part_of(name) for name in ("awk", "bash", pair.source)] == ["train", "train", "test"]


def test_a_manual_page_of_man() -> None:
    page = """.\\" a comment
.TH COPY 1
.SH NAME
copy \\- copies files and what is in them
.SH "SYNOPSIS"
.B copy
[\\fIOPTION\\fR]
.SH DESCRIPTION
.PP
Copies \\fBfiles\\fR to another place,
.I with
everything that belongs to them\\(em or not.
.SH OPTIONS
none
"""
    assert corpus.manual(page) == (
        "copies files and what is in them",
        "Copies files to another place, with everything that belongs to them- or not.",
    )


def test_a_manual_page_of_mdoc() -> None:
    page = (
        ".Sh NAME\n.Nm copy\n.Nd copies files and what is in them\n.Sh DESCRIPTION\nThe\n.Nm copy\nutility "
        + ("copies everything that there is. " * 3)
    )
    found = corpus.manual(page)
    assert found is not None
    assert found[0] == "copies files and what is in them"
    assert found[1].startswith("The copy utility copies everything")


def test_what_is_no_manual_page() -> None:
    assert corpus.manual(".so man3/other.3") is None
    assert corpus.manual("") is None


def test_paragraphs_of_prose() -> None:
    prose = "This is how the program is used by people who have never seen one of its kind before, in short."
    text = f"{prose}\n\n* x = 1;\n* y = 2;\n\nCopyright 2020 {prose}\n\nshort\n"
    assert corpus.paragraphs(text) == [prose]


def test_this_machine_has_some_of_everything() -> None:
    assert len(corpus.installed()) >= 50
    assert next(iter(corpus.our_lines()))


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only source that apt-get knows here: a release of two source packages, one of which has two packages."""
    lists = {
        "Packages": "Package: tool\nSource: suite (1.2)\n\nPackage: tool-doc\nSource: suite\n\nPackage: other\n",
        "Translation-en": "\n\n".join(
            f"Package: {name}\nDescription-md5: {number:032x}\n"
            f"Description-en: what {name} is good for\n It reads {name} of one kind and writes it as another, again and again."
            for number, name in enumerate(("tool", "tool-doc", "other"))
        ),
    }
    architecture = subprocess.run(
        ["dpkg", "--print-architecture"], check=True, capture_output=True, text=True
    ).stdout.strip()
    archive = tmp_path / "archive"
    suite = archive / "dists" / "some"
    sums = []
    for folder, name in ((f"main/binary-{architecture}", "Packages"), ("main/i18n", "Translation-en")):
        (suite / folder).mkdir(parents=True)
        data = f"{lists[name]}\n".encode()
        (suite / folder / name).write_bytes(data)
        sums.append(f" {hashlib.sha256(data).hexdigest()} {len(data)} {folder}/{name}\n")
    (suite / "Release").write_text(
        f"Suite: some\nCodename: some\nComponents: main\nArchitectures: {architecture}\nSHA256:\n{''.join(sums)}"
    )
    sources = tmp_path / "sources.list"
    sources.write_text(f"deb [trusted=yes] file:{archive} some main\n")
    configuration = tmp_path / "apt.conf"
    configuration.write_text(
        f'Dir::Etc::sourcelist "{sources}";\nDir::Etc::sourceparts "{tmp_path / "none"}";\n'
        'Acquire::Check-Valid-Until "false";\nAPT::Sandbox::User "root";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(configuration))
    return suite


def test_package_lists_are_fetched_into_a_folder_of_ours_and_kept(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    work = Path(".cache/work")  # as the script gives it; apt would look for it below /var/lib/apt
    found = corpus.available(work, at_least=2)
    assert [(pair.source, pair.line) for pair in found] == [
        ("other", "what other is good for"),
        ("suite", "what tool is good for"),
    ]
    assert list((work / "apt-lists").glob("*Translation-en*"))
    (release / "main" / "i18n" / "Translation-en").unlink()
    assert corpus.available(work, at_least=2) == found


def test_too_few_descriptions_are_an_error_that_says_what_to_do(release: Path, tmp_path: Path) -> None:
    (release / "main" / "i18n" / "Translation-en").unlink()
    (release / "Release").write_text("Suite: some\nCodename: some\nComponents: main\n")
    with pytest.raises(SystemExit, match=r"describe 0 packages, not 20,000 or more.* see above .* try again"):
        corpus.available(tmp_path)
    assert not (tmp_path / "apt-lists").exists(), "the next run fetches them again"


def test_no_apt_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="there is no apt-get"):
        corpus.available(tmp_path)


def test_an_apt_get_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = tmp_path / "apt.conf"
    configuration.write_text("this is no configuration")
    monkeypatch.setenv("APT_CONFIG", str(configuration))
    with pytest.raises(SystemExit, match="apt-get update failed"):
        corpus.available(tmp_path)
    assert not (tmp_path / "apt-lists").exists()
