"""What may be written into ``kv_connector_extra_config``, and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

NAMESPACE_LENGTH_MAX = 256


@dataclass(frozen=True)
class Settings:
    """Every setting of the connector. Wrong ones stop the engine at start, with a sentence that says what is right."""

    # Where the daemon of this node listens for engines.
    socket: str = "/run/kvferry/kvferry.sock"
    # How long the blocks of a finished prefill wait for the decode engine, in milliseconds. It bounds how long KV
    # memory stays pinned when nobody comes. 1,000 to 600,000.
    lease_ms: int = 30_000
    # How long the scheduler may wait for the daemon when a prefill ends, and a prompt to hear what the tiers hold, in
    # milliseconds: a request can lose no more than this to a daemon that hangs, at each end. 1 to 5,000.
    reply_timeout_ms: int = 200
    # How long one load may take before it is called off and computed here, in milliseconds. 100 to 600,000.
    transfer_deadline_ms: int = 20_000
    # How long a step may wait for copies into the tiers of blocks that it would write over, in milliseconds: what a
    # sliding window has passed, vLLM gives away in the very next step. After a wait in vain no step waits for ten
    # seconds. 0 to 5,000.
    store_wait_ms: int = 50
    # Whether blocks are kept in the daemon's tiers and loaded from them. Nothing happens where the daemon has none.
    tier: bool = True
    # Whose quota in the tiers the blocks of this engine's requests count against; a request's cache_salt, where it has
    # one, names another tenant. At most 256 characters; empty: nobody's in particular.
    namespace: str = ""


_BOUNDS = {
    "lease_ms": (1_000, 600_000),
    "reply_timeout_ms": (1, 5_000),
    "transfer_deadline_ms": (100, 600_000),
    "store_wait_ms": (0, 5_000),
}


def parse(extra_config: Mapping[str, object] | None) -> Settings:
    """Reads the extra config of vLLM's ``--kv-transfer-config``.

    Raises:
        ValueError: a key is unknown or a value is out of its bounds; the text names what is known.
    """
    written = dict(extra_config or {})
    known = [setting.name for setting in fields(Settings)]
    unknown = sorted(set(written) - set(known))
    if unknown:
        raise ValueError(
            f"kv_connector_extra_config has unknown keys {unknown}: KVFerryConnector knows {sorted(known)}"
        )
    socket = written.get("socket", Settings.socket)
    if not isinstance(socket, str) or not socket.startswith("/"):
        raise ValueError(f"kv_connector_extra_config socket must be an absolute path, not {socket!r}")
    numbers: dict[str, int] = {}
    for name, (low, high) in _BOUNDS.items():
        value = written.get(name, getattr(Settings, name))
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(
                f"kv_connector_extra_config {name} must be a whole number of milliseconds "
                f"from {low} to {high}, not {value!r}"
            )
        numbers[name] = value
    tier = written.get("tier", Settings.tier)
    if not isinstance(tier, bool):
        raise ValueError(f"kv_connector_extra_config tier must be true or false, not {tier!r}")
    namespace = written.get("namespace", Settings.namespace)
    if not isinstance(namespace, str) or len(namespace) > NAMESPACE_LENGTH_MAX:
        raise ValueError(
            f"kv_connector_extra_config namespace must be a text of at most {NAMESPACE_LENGTH_MAX} characters, "
            f"not {namespace!r}"
        )
    return Settings(socket=socket, tier=tier, namespace=namespace, **numbers)
