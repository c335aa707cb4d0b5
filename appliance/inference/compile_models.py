"""Compiles the text models for Edge TPUs with Google's `edgetpu_compiler`: `python -m appliance.inference.compile_models`.

The compiler exists for x86-64 Linux only, and what it makes depends on its version: so nothing compiled ships. Each result goes
into the models of the state folder, with an entry that names its twin; what is compiled already stays. The running appliance
takes it up when it starts anew. https://coral.ai/docs/edgetpu/compiler/
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from appliance.paths import Paths

from . import library, models
from .errors import InferenceError, ModelRefused
from .models import Model
from .tflite import SIZE_LIMIT_BYTES

COMPILER = "edgetpu_compiler"

#: A model of a few megabytes takes seconds.
TIMEOUT_S = 600.0

#: Exit statuses as those of `coral-reef`: sysexits.h's EX_UNAVAILABLE and EX_DATAERR.
UNAVAILABLE, REFUSED = 69, 65


def twins(known: dict[str, Model]) -> list[Model]:
    """The models that an Edge TPU could run and that are not compiled for one."""
    return [model for model in known.values() if model.path.suffix == ".tflite" and not model.entry.twin]


def compile_model(compiler: str, model: Model) -> bytes:
    """What the compiler makes of a model. ModelRefused with its last words when it fails."""
    with tempfile.TemporaryDirectory(prefix="coral-reef-") as folder:
        command = [compiler, "--out_dir", folder, str(model.path)]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ModelRefused(f"{COMPILER} was not done with {model.name} after {TIMEOUT_S:.0f} s") from None
        made = Path(folder) / f"{model.path.stem}_edgetpu.tflite"
        if done.returncode != 0 or not made.is_file():
            said = done.stdout.decode("utf-8", "replace").strip().splitlines()[-5:]
            raise ModelRefused(
                f"{COMPILER} failed with {model.name} (exit status {done.returncode}): {' '.join(said)}"
            )
        if made.stat().st_size > SIZE_LIMIT_BYTES:
            raise ModelRefused(f"{COMPILER} made {made.stat().st_size} bytes of {model.name}")
        return made.read_bytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--state", type=Path, required=True, metavar="DIR", help="state folder")
    paths = Paths.under(parser.parse_args().state)
    compiler = shutil.which(COMPILER)
    if compiler is None:
        print(
            f"coral-reef: {COMPILER} is not installed: see https://coral.ai/docs/edgetpu/compiler/ "
            "(x86-64 only; the result can be copied with the state folder)",
            file=sys.stderr,
        )
        return UNAVAILABLE
    try:
        known = models.catalogue(paths)
        done = models.compiled(known)
        for model in twins(known):
            if model.name in done:
                print(f"{model.name}: compiled already, as {done[model.name].name}")
                continue
            models.verify(model)
            made = library.add_compiled(paths, model, compile_model(compiler, model))
            print(f"{model.name}: compiled as {made.name}, {made.entry.size_bytes} bytes")
    except InferenceError as error:
        print(f"coral-reef: {error}", file=sys.stderr)
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
