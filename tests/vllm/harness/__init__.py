"""Starts and stops what the demo and the end-to-end tests need: daemons, vLLM engines, the sidecar.

::

    Stage (a folder under /tmp, signals) -> Process (a session of its own, a log) -> ready or the log's end
          -> end: SIGTERM, then SIGKILL for whatever of the session remains -> nothing left, folder removed

Only the standard library: the demo runs on the machine's python3.
"""
