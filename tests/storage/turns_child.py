"""A process of its own that appends turns: `turns_child.py STATE SESSION NAME COUNT`.

Prints `ready`, starts when a line arrives on stdin, and prints a line for each turn that was acknowledged.
"""

from __future__ import annotations

import sys
from pathlib import Path

from appliance.paths import Paths
from appliance.storage.conversations import Conversations
from appliance.storage.database import Database


def main(state: str, session_id: str, name: str, count: str) -> None:
    with Database.open(Paths.under(Path(state))) as database:
        conversations = Conversations(database)
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(int(count)):
            conversations.append_turn(
                session_id,
                f"question {name} {number}",
                f"answer {name} {number}",
                request_id=f"{name}-{number}",
                finish_reason="stop",
                prompt_tokens=1,
                completion_tokens=1,
            )
            print(f"{name}-{number}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
