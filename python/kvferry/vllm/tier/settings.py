"""What may be written beside ``type`` and ``module_path`` in ``secondary_tiers``, and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from kvferry.vllm.settings import NAMESPACE_LENGTH_MAX


@dataclass(frozen=True)
class TierSettings:
    """Every setting of the tier. Wrong ones stop the engine at start, with a sentence that says what is right."""

    # Where the daemon of this node listens for engines.
    socket: str = "/run/kvferry/kvferry.sock"
    # Host memory through which chunks pass between vLLM's own and the daemon, in MiB; all of it may come into use.
    # 1 to 65,536.
    staging_mib: int = 256
    # How long a request waits for the daemon to say what it has, in milliseconds; then it is computed. 1 to 5,000.
    reply_timeout_ms: int = 200
    # How long one job may take before it is called off, in milliseconds. 100 to 600,000.
    transfer_deadline_ms: int = 20_000
    # What else tells this engine's KV cache from that of engines with the same model name: the commit of a model that
    # comes from a hub, and whatever identity.py cannot see.
    revision: str = ""
    # Whose quota in the tiers this engine's chunks count against. At most 256 characters; empty: nobody's in
    # particular.
    namespace: str = ""


_BOUNDS = {
    "staging_mib": (1, 65_536),
    "reply_timeout_ms": (1, 5_000),
    "transfer_deadline_ms": (100, 600_000),
}


def parse(written: Mapping[str, object]) -> TierSettings:
    """Reads a tier's configuration.

    Raises:
        ValueError: a key is unknown or a value is out of its bounds; the text names what is known.
    """
    known = [setting.name for setting in fields(TierSettings)]
    unknown = sorted(set(written) - set(known))
    if unknown:
        raise ValueError(f"secondary_tiers: KVFerryTier does not know {unknown}: it knows {sorted(known)}")
    socket = written.get("socket", TierSettings.socket)
    if not isinstance(socket, str) or not socket.startswith("/"):
        raise ValueError(f"secondary_tiers: socket of KVFerryTier must be an absolute path, not {socket!r}")
    revision = written.get("revision", TierSettings.revision)
    if not isinstance(revision, str):
        raise ValueError(f"secondary_tiers: revision of KVFerryTier must be a text, not {revision!r}")
    numbers: dict[str, int] = {}
    for name, (low, high) in _BOUNDS.items():
        value = written.get(name, getattr(TierSettings, name))
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(
                f"secondary_tiers: {name} of KVFerryTier must be a whole number from {low} to {high}, not {value!r}"
            )
        numbers[name] = value
    namespace = written.get("namespace", TierSettings.namespace)
    if not isinstance(namespace, str) or len(namespace) > NAMESPACE_LENGTH_MAX:
        raise ValueError(
            f"secondary_tiers: namespace of KVFerryTier must be a text of at most {NAMESPACE_LENGTH_MAX} characters, "
            f"not {namespace!r}"
        )
    return TierSettings(socket=socket, revision=revision, namespace=namespace, **numbers)
