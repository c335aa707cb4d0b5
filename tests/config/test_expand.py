"""`${NAME}`: where its value comes from, and who gets to see it."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from appliance.config.errors import ConfigError, NotExpanded, Severity
from appliance.config.expand import BadReference, Expanded, Variables, expand, require_expanded
from appliance.config.load import load, load_appliance, load_network
from appliance.config.secret import Secret
from appliance.config.show import show
from appliance.paths import Paths

HUB = "mode: p2p_hub\np2p:\n  turn_secret: ${TURN_SECRET}\n  ice_servers:\n  - {url: 'stun:${HOST}'}\n"


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("plain $A $ {A}", Expanded("plain $A $ {A}")),
        ("${A}", Expanded("1", ("A",))),
        ("<${A}${B}${A}>", Expanded("<1${A}1>", ("A", "B"))),
        ("$${A}", Expanded("${A}")),
        ("$$${A}", Expanded("$${A}")),
        ("${A}${_x9}", Expanded(None, ("A", "_x9"), ("_x9",))),
    ],
)
def test_expands_once(text: str, expanded: Expanded) -> None:
    assert expand(text, {"A": "1", "B": "${A}"}.get) == expanded


@pytest.mark.parametrize("text", ["${", "${}", "${A", "${A-B}", "${1}", "${../A}", "a ${A b}"])
def test_malformed(text: str) -> None:
    with pytest.raises(BadReference, match="without a name"):
        expand(text, {"A": "1"}.get)


def test_credential_wins_and_loses_one_line_feed(tmp_path: Path) -> None:
    (tmp_path / "A").write_bytes(b"credential\n\n")
    variables = Variables({"A": "environment", "B": ""}, tmp_path)
    assert variables.get("A") == "credential\n"
    assert variables.get("B") == ""
    assert variables.get("C") is None


def test_variables_of_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORAL_TEST", "environment")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert Variables.of_process().get("CORAL_TEST") == "environment"
    (tmp_path / "CORAL_TEST").write_text("credential")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert Variables.of_process().get("CORAL_TEST") == "credential"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x" * 65_537, "the credential A is larger than 64 KiB, expected less"),
        (b"\xff", "the credential A is no UTF-8, expected text"),
        (b"a\0b", "the credential A holds a NUL character, expected text"),
    ],
)
def test_bad_credentials(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "A").write_bytes(content)
    with pytest.raises(BadReference) as caught:
        Variables({}, tmp_path).get("A")
    assert str(caught.value) == message


def test_credential_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "A").mkdir()
    os.mkfifo(tmp_path / "B")
    for name in ("A", "B"):
        with pytest.raises(BadReference, match=f"the credential {name} cannot be read"):
            Variables({}, tmp_path).get(name)


def test_variable_that_is_no_text() -> None:
    with pytest.raises(BadReference, match="the variable A is no UTF-8"):
        Variables({"A": "\udcff"}).get("A")


def test_unset_is_a_warning_until_applied(tmp_path: Path) -> None:
    path = tmp_path / "network.yaml"
    path.write_text(HUB)
    loaded = load_network(path, variables=Variables({}))
    end = "is not set, expected a credential or an environment variable of that name"
    assert [str(problem) for problem in loaded.warnings] == [
        f"{path}:3: p2p.turn_secret: ${{TURN_SECRET}} {end}",
        f"{path}:5: p2p.ice_servers[0].url: ${{HOST}} {end}",
    ]
    assert {problem.severity for problem in loaded.warnings} == {Severity.WARNING}
    assert loaded.settings.p2p.turn_secret is None  # the default
    assert loaded.settings.p2p.ice_servers[0].url == "stun:${HOST}"  # there is none
    with pytest.raises(NotExpanded) as caught:
        require_expanded(loaded)
    assert [str(problem) for problem in caught.value.problems] == [
        str(problem) for problem in loaded.warnings
    ]
    assert {problem.severity for problem in caught.value.problems} == {Severity.ERROR}
    with pytest.raises(NotExpanded):
        load_network(path, variables=Variables({}), apply=True)
    load_network(path, variables=Variables({"TURN_SECRET": "x", "HOST": "y"}), apply=True)


def test_sections_of_another_mode_may_stay_unset(tmp_path: Path) -> None:
    path = tmp_path / "network.yaml"
    path.write_text(HUB.replace("p2p_hub", "local"))
    assert len(load_network(path, variables=Variables({}), apply=True).warnings) == 2
    path.write_text("interfaces: {usb: {type: usb, ip: '${IP}'}}")
    with pytest.raises(NotExpanded, match=r"\$\{IP\} is not set"):
        load_network(path, variables=Variables({}), apply=True)


def test_required_choice_cannot_stay_unset(tmp_path: Path) -> None:
    path = tmp_path / "network.yaml"
    path.write_text("interfaces: {usb: {type: '${TYPE}'}}")
    with pytest.raises(
        ConfigError, match=r"usb\.type: refers to a name that is not set, expected one of ethernet"
    ):
        load_network(path, variables=Variables({}))


def test_bad_reference_is_a_problem_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "appliance.toml"
    path.write_text("[chat]\ndefault_persona = '${'")
    with pytest.raises(ConfigError) as caught:
        load_appliance(path)
    assert str(caught.value) == (
        f"{path}:2: chat.default_persona: has ${{ without a name and }}, "
        "expected ${NAME}, or $${ for the characters ${"
    )


def test_secret_is_never_shown() -> None:
    secret = Secret("hunter2")
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret!r}", repr([secret])):
        assert "hunter2" not in shown
    assert secret.reveal() == "hunter2"
    assert secret == Secret("hunter2") != Secret("other")
    assert hash(secret) == hash(Secret("hunter2"))
    with pytest.raises(TypeError):
        msgspec.json.encode(secret)


def test_show_prints_what_was_written(tmp_path: Path) -> None:
    paths = Paths.under(tmp_path)
    paths.etc.mkdir()
    paths.appliance_toml.write_text("[chat]\ndefault_persona = '${WHO}'\n[text]\nmodel='${A}-${B}'\n")
    paths.network_yaml.write_text(
        "p2p:\n  turn_secret: hunter${N}\n  ice_servers:\n"
        "  - {url: 'stun:a', credential: hunter2}\n  - {url: 'stun:b', credential: '${MISSING}'}\n"
        "  - {url: 'stun:c', credential: '$${x}'}\n"
    )
    variables = Variables({"WHO": "ada", "A": "m", "N": "2"})
    shown = show(load(paths, variables=variables))
    assert shown["appliance"]["chat"]["default_persona"] == "${WHO} (set)"
    assert shown["appliance"]["text"]["model"] == "${A}-${B} (A set, B not set)"
    assert shown["network"]["p2p"]["turn_secret"] == "********${N} (set)"
    credentials = [server["credential"] for server in shown["network"]["p2p"]["ice_servers"]]
    assert credentials == ["********", "${MISSING} (not set)", "********"]
    assert shown["network"]["api"]["port"] == 8080
    assert b"hunter2" not in msgspec.json.encode(shown)
