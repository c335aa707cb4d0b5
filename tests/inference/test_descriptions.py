"""How the embedding's training text is read from what a Debian machine has."""

from __future__ import annotations

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
