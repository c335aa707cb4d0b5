"""Errors of the chat. `code` is what programs read, `status` the HTTP status that fits.

ChatError
├── UnknownPersona      404
├── UnknownSession      404
├── Forbidden           403     not for this caller's role
├── BadMessage          400     empty, or longer than the owner allows
├── NotServed           404     no worker has that model or adapter; `code` says which
├── Unavailable         503     no worker is there, or the queue is full; `code` says which
├── NotStored           503     the database is full, locked or broken; nothing was kept
└── GenerationFailed    502     the worker died or its engine gave up; 400 when the message does not fit the model's window
"""

from __future__ import annotations


class ChatError(Exception):
    """Why there is no reply."""

    code = "chat_error"
    status = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class UnknownPersona(ChatError):
    code = "unknown_persona"
    status = 404


class UnknownSession(ChatError):
    code = "unknown_session"
    status = 404


class Forbidden(ChatError):
    code = "forbidden"
    status = 403


class BadMessage(ChatError):
    code = "bad_message"
    status = 400


class Unavailable(ChatError):
    code = "unavailable"
    status = 503

    def __init__(self, message: str, code: str = "unavailable") -> None:
        super().__init__(message)
        self.code = code


class NotServed(ChatError):
    status = 404

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class NotStored(ChatError):
    code = "not_stored"
    status = 503


class GenerationFailed(ChatError):
    code = "engine_error"
    status = 502

    def __init__(self, message: str, code: str = "engine_error") -> None:
        super().__init__(message)
        self.code = code
        if code == "prompt_too_long":
            self.status = 400
