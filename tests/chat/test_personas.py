"""The personas that ship."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import tomli

import appliance
from appliance.chat.errors import UnknownPersona
from appliance.chat.personas import find_persona, load_personas

TRAINED = Path(appliance.__file__).parent / "inference/making/chat/text/personas.toml"


def test_they_speak_as_the_model_was_trained() -> None:
    trained = tomli.loads(TRAINED.read_text("utf-8"))["persona"]
    shipped = [
        {"id": each.id, "name": each.name, "role": each.role, "system": each.system}
        for each in load_personas().values()
    ]
    assert shipped == [{key: each[key] for key in ("id", "name", "role", "system")} for each in trained]


def test_each_is_whole() -> None:
    personas = load_personas()
    assert next(iter(personas)) == "coral"
    for persona_id, persona in personas.items():
        assert persona.id == persona_id
        assert all(text.strip() for text in (persona.name, persona.role, persona.description, persona.system))


def test_an_unknown_one() -> None:
    with pytest.raises(
        UnknownPersona, match="no persona is called 'nemo'; there are: coral, finn, "
    ) as caught:
        find_persona(load_personas(), "nemo")
    assert (caught.value.code, caught.value.status) == ("unknown_persona", 404)


def test_unknown_keys_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "personas.toml"
    path.write_text(
        '[[persona]]\nid = "a"\nname = "A"\nrole = "r"\ndescription = "d"\nsystem = "s"\nmood = 1\n'
    )
    with pytest.raises(msgspec.ValidationError, match="mood"):
        load_personas(path)
