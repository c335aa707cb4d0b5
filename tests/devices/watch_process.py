"""A `DeviceWatch` in a process of its own, on whatever libudev and /sys there are: run by `hotplug.Watched`.

Takes orders as lines of JSON, `[method, argument, ...]`, and answers each with `{"answer": ...}`; in between it tells what
changes: `{"changed": [TPU, ...], "at": CLOCK_MONOTONIC}` and `{"lost": [id, worker, reason]}`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import msgspec

from appliance.config.appliance import Devices
from appliance.devices.access import User
from appliance.devices.errors import DevicesError
from appliance.devices.watch import DeviceWatch
from appliance.wire.messages import Tpu


def say(**message: Any) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def changed(tpus: list[Tpu]) -> None:
    say(changed=tpus, at=time.monotonic())


async def main() -> None:
    settings = msgspec.json.decode(sys.argv[1], type=Devices)
    user = User("coral-worker", int(sys.argv[2]), frozenset()) if sys.argv[2:] else User.named(None)
    watch = DeviceWatch(
        settings,
        user=user,
        changed=changed,
        lost=lambda tpu_id, worker, reason: say(lost=[tpu_id, worker, reason]),
    )
    watching = asyncio.create_task(watch.run())
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        method, *arguments = msgspec.json.decode(line)
        try:
            if method == "all":
                say(answer=watch.table.all())
            elif method == "trays":
                say(answer=watch.trays())
            elif method == "reset":
                say(answer=await watch.reset(*arguments))
            else:
                say(answer=getattr(watch, method)(*arguments))
        except DevicesError as error:
            say(answer=f"{error.code}: {error}")
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main())
