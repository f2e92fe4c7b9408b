"""`vllm serve`, with its processes started by fork instead of spawn.

Every engine is three processes, and each spawned one imports torch and vllm again: two thirds of the start on two
cores. vLLM forks by default but not from its command line or on CPUs, where threads may be bound to cores by the
environment of the child; the harness does not bind them. With one rank nothing but the way of starting differs.

With several, who waits for others sleeps for a moment where vLLM gives up its core (``sched_yield``), again and again
and for a second behind every step. On two cores and Linux 6.18 that left nothing for others: the kernel told of its own
threads that they had not run for 55 s.
"""

from __future__ import annotations

import multiprocessing
import sys
import time

# Chosen: short beside a step.
PAUSE_S = 0.0002


def main() -> None:
    # Imported before the first fork, for all three.
    import vllm.v1.engine.async_llm
    import vllm.v1.engine.core
    import vllm.v1.engine.utils
    import vllm.v1.executor.multiproc_executor
    import vllm.v1.worker.cpu_worker  # noqa: F401
    from vllm.entrypoints.cli.main import main as serve
    from vllm.utils import system_utils

    replaced = system_utils.get_mp_context
    fork = multiprocessing.get_context("fork")
    for name, module in list(sys.modules.items()):
        if name.startswith("vllm.") and getattr(module, "get_mp_context", None) is replaced:
            module.get_mp_context = lambda: fork
    if "--tensor-parallel-size" in sys.argv:
        for name, module in list(sys.modules.items()):
            if name.startswith("vllm.") and hasattr(module, "sched_yield"):
                module.sched_yield = lambda: time.sleep(PAUSE_S)
    sys.argv[1:1] = ["serve"]
    serve()


if __name__ == "__main__":
    main()
