"""FAKE of ``vllm.v1.core.kv_cache_utils``."""


def resolve_kv_cache_block_sizes(kv_cache_config, vllm_config):
    sizes = [group.kv_cache_spec.block_size for group in kv_cache_config.kv_cache_groups]
    return max(sizes), min(sizes)


def maybe_convert_block_hash(hash_bytes):
    return int.from_bytes(hash_bytes, byteorder="big") & ((1 << 64) - 1)
