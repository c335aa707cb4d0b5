"""Small models over the wire: embeddings and emotions, on whichever worker runs them.

A worker that dies meanwhile, or loses its last TPU, is replaced: the same inputs go to another one, which makes the same of them.
Who asked notices nothing but the time.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence

import msgspec

from appliance.chat.emotions import Emotion
from appliance.chat.errors import BadMessage, ChatError, GenerationFailed, Unavailable
from appliance.wire.messages import EmotionOutput, Invoke, Invoked, Priority, Usage

from .links import WORKER_LOST, SupervisorLink, WorkerLinks

log = logging.getLogger(__name__)

#: Codes of a worker that is no worker for this any more; another is.
ELSEWHERE = frozenset({WORKER_LOST, "no_device", "too_many"})

#: How long another worker is looked for, and the pause between two looks, growing.
PATIENCE_S = 10.0
PAUSE_S = 0.05
PAUSE_LIMIT_S = 0.5

#: What a reply expresses is part of its end: it must not hold that up for longer.
EMOTION_LIMIT_S = 0.5

#: Of a long reply, the beginning tells.
EMOTION_LIMIT_CHARS = 4096

_emotion: msgspec.msgpack.Decoder[EmotionOutput] = msgspec.msgpack.Decoder(EmotionOutput)


class Tensors:
    """Embeddings and emotions for one gateway process."""

    def __init__(
        self, supervisor: SupervisorLink, workers: WorkerLinks, *, patience_s: float = PATIENCE_S
    ) -> None:
        self._supervisor, self._workers, self._patience_s = supervisor, workers, patience_s

    async def invoke(
        self, kind: str, texts: Sequence[str], *, model: str = "", account: str, priority: Priority
    ) -> tuple[Invoked, str]:
        """The outputs, and the name of the model. BadMessage when a text is too long, NotServed when there is no such model,
        Unavailable when no worker can be had for PATIENCE_S."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience_s
        pause_s, avoid = PAUSE_S, ""
        while True:
            request_id = f"inv-{secrets.token_urlsafe(9)}"
            try:
                granted = await self._supervisor.lease_invocations(
                    request_id, kind=kind, model=model, invocations=len(texts), avoid=avoid
                )
                avoid = granted.worker
                try:
                    link = await self._workers.to(granted)
                    request = Invoke(
                        request_id=request_id,
                        model=granted.model,
                        account=account,
                        priority=priority,
                        texts=list(texts),
                    )
                    return await link.invoke(request), granted.model
                finally:
                    self._supervisor.settle(request_id, Usage())
            except GenerationFailed as error:
                if error.code == "bad_input":
                    raise BadMessage(error.message) from error
                if error.code not in ELSEWHERE:
                    raise
                last: ChatError = error
            except Unavailable as error:
                if error.code != Unavailable.code:
                    raise
                last = error
            if loop.time() + pause_s > deadline:
                raise Unavailable(f"no worker does it: {last.message}") from last
            log.info("%s is asked for again: %s", kind, last.message)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_LIMIT_S)

    async def emotion_of(self, text: str, account: str) -> Emotion | None:
        """What a text expresses; None when there is no model for that, or none that answers soon."""
        try:
            async with asyncio.timeout(EMOTION_LIMIT_S):
                invoked, _ = await self.invoke(
                    "emotion", [text[:EMOTION_LIMIT_CHARS]], account=account, priority=Priority.HIGH
                )
            found = _emotion.decode(invoked.outputs[0])
        except (ChatError, TimeoutError, msgspec.DecodeError) as error:
            log.debug("no emotion: %s", error)
            return None
        return Emotion(found.label, found.intensity)
