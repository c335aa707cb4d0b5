"""The shipped chat model without an end: replies then run to `max_tokens`, and speed can be compared."""

from __future__ import annotations

from pathlib import Path

import msgspec

from appliance.inference import models

NAME = "bench-endless"


def make_endless(folder: Path) -> Path:
    """Writes the model and a manifest for it into `folder`, as an owner's own model; returns the file."""
    (shipped,) = (entry for entry in models.read_manifest(models.SHIPPED) if entry.kind == "text")
    data = (models.SHIPPED / shipped.file).read_bytes()
    # The engine knows an end token by this very text; another of the same length leaves every offset as it is.
    data = data.replace(b"<|end|>", b"<|xnd|>")
    marker = b"tokenizer.ggml.eos_token_id" + (4).to_bytes(4, "little")  # GGUF: 4 is the type uint32
    at = data.index(marker) + len(marker)
    data = data[:at] + (0).to_bytes(4, "little") + data[at + 4 :]  # the padding token, which is never said
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{NAME}.gguf"
    path.write_bytes(data)
    entry = models.Entry(
        name=NAME,
        kind="text",
        file=path.name,
        sha256=models.digest(path),
        size_bytes=len(data),
        context_tokens=shipped.context_tokens,
    )
    (folder / "manifest.json").write_bytes(msgspec.json.encode(models.Manifest([entry])))
    return path
