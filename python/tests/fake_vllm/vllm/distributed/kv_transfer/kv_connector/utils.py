"""FAKE of ``vllm.distributed.kv_transfer.kv_connector.utils``."""


class FakeBackend:
    @staticmethod
    def get_name():
        return "CPU_ATTN"


def get_current_attn_backends(vllm_config, layer_names=None):
    return [FakeBackend]
