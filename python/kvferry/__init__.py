"""KVFerry carries the KV cache of large language models between vLLM engines.

Importing this package loads nothing: no vLLM, no torch, no native code. The vLLM connector is ``kvferry.vllm``, the
connection to the daemon is ``kvferry.client``.
"""

__all__: list[str] = []
