"""What the forkserver imports once, so that a worker starts in milliseconds. Nothing here may be *used* before the fork:
llama.cpp hangs in a child when its parent has run it, LiteRT's thread pools are not in the child."""

from __future__ import annotations

import os

# Set before OpenMP is loaded: with active waiting, two threads on a busy host collapse a hundredfold.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import xllamacpp  # noqa: F401

from . import tensor_worker, text, worker  # noqa: F401
