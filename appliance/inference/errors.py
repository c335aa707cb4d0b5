"""Errors of the compute plane.

InferenceError          `code` is what the client is told
├── ModelUnknown        no model of that name
├── ModelCorrupt        a file that is not what the manifest says
├── ModelRefused        a file that cannot become a model here, or a model that cannot be removed or loaded as things are
│   ├── GgufBroken      a file that is no GGUF, or is damaged
│   ├── TfliteBroken    a file that is no TensorFlow Lite model, or is damaged
│   ├── NameTaken       there is a model of that name
│   ├── NoSpace         the disk has no room for it
│   └── LibraryBusy     another process changes the library
├── ManifestBroken      a manifest that cannot be read
├── EngineFailed        the engine would not load, or said something unexpected
├── LibraryUnusable     libedgetpu is not there, or crashes
├── EdgeTpuFailed       a TPU that cannot be opened, or did not do what it was told
│   └── EdgeTpuGone     it is not in the library's listing
├── BadInput            a text or tensor that the model does not take
├── NoDevice            nothing is left to run the model on
├── AdapterUnknown      an adapter that was not loaded with the model
├── PromptTooLong       the message alone does not fit the model's window
└── TextTooLong         a text for an embedding or an emotion that is too long
"""

from __future__ import annotations

from collections.abc import Iterable


class InferenceError(Exception):
    """Anything that keeps a worker from answering."""

    code = "engine_error"


class ModelUnknown(InferenceError):
    code = "model_unknown"


class ModelCorrupt(InferenceError):
    code = "model_corrupt"


class ModelRefused(InferenceError):
    code = "model_refused"


class GgufBroken(ModelRefused):
    code = "gguf_broken"


class TfliteBroken(ModelRefused):
    code = "tflite_broken"


class NameTaken(ModelRefused):
    code = "name_taken"


class NoSpace(ModelRefused):
    code = "no_space"


class LibraryBusy(ModelRefused):
    code = "library_busy"


class ManifestBroken(InferenceError):
    code = "manifest_broken"


class EngineFailed(InferenceError):
    code = "engine_error"


class LibraryUnusable(InferenceError):
    code = "library_unusable"


class EdgeTpuFailed(InferenceError):
    code = "tpu_failed"


class EdgeTpuGone(EdgeTpuFailed):
    code = "tpu_gone"


class BadInput(InferenceError):
    code = "bad_input"


class NoDevice(InferenceError):
    code = "no_device"


class AdapterUnknown(InferenceError):
    code = "unknown_adapter"

    def __init__(self, adapter: str, known: Iterable[str]) -> None:
        super().__init__(f"no adapter {adapter!r} is loaded; there are: {', '.join(sorted(known)) or 'none'}")


class PromptTooLong(InferenceError):
    """`tokens` were sent, `limit` fit."""

    code = "prompt_too_long"

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(
            f"the message has {tokens} tokens with its persona, and this model reads at most {limit}: shorten it"
        )
        self.tokens, self.limit = tokens, limit


class TextTooLong(InferenceError):
    """`size_bytes` were sent, `limit_bytes` are read."""

    code = "text_too_long"

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"a text has {size_bytes} bytes, and the model reads at most {limit_bytes}: split it into smaller ones"
        )
        self.size_bytes, self.limit_bytes = size_bytes, limit_bytes
