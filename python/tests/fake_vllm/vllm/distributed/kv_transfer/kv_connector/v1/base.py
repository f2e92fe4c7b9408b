"""FAKE of ``vllm.distributed.kv_transfer.kv_connector.v1.base``: the hooks that KVFerry implements or relies on."""

import enum
from abc import ABC, abstractmethod
from dataclasses import dataclass, field


@dataclass
class KVConnectorTransferResults:
    finished_sending: set = field(default_factory=set)
    finished_recving: set = field(default_factory=set)
    failed_recving: set = field(default_factory=set)


class SupportsHMA(ABC):
    @abstractmethod
    def request_finished_all_groups(self, request, block_ids):
        raise NotImplementedError


class KVConnectorRole(enum.Enum):
    SCHEDULER = 0
    WORKER = 1


class KVConnectorHandshakeMetadata(ABC):
    pass


class KVConnectorMetadata(ABC):
    pass


class KVConnectorWorkerMetadata(ABC):
    @abstractmethod
    def aggregate(self, other):
        pass


class KVConnectorBase_V1(ABC):
    @property
    def requires_kv_delivery(self):
        return self._kv_transfer_config.is_kv_producer

    def __init__(self, vllm_config, role, kv_cache_config):
        self._connector_metadata = None
        self._vllm_config = vllm_config
        if vllm_config.kv_transfer_config is None:
            raise ValueError("kv_transfer_config must be set for KVConnectorBase_V1")
        self._kv_transfer_config = vllm_config.kv_transfer_config
        self._kv_cache_config = kv_cache_config
        self._role = role

    @property
    def role(self):
        return self._role

    def get_mem_pool_context(self):
        return None

    def bind_connector_metadata(self, connector_metadata):
        self._connector_metadata = connector_metadata

    def clear_connector_metadata(self):
        self._connector_metadata = None

    def _get_connector_metadata(self):
        assert self._connector_metadata is not None
        return self._connector_metadata

    def has_connector_metadata(self):
        return self._connector_metadata is not None

    def register_kv_caches(self, kv_caches):
        return

    def handle_preemptions(self, kv_connector_metadata):
        return

    @abstractmethod
    def start_load_kv(self, forward_context, **kwargs):
        pass

    @abstractmethod
    def wait_for_layer_load(self, layer_name):
        pass

    @abstractmethod
    def save_kv_layer(self, layer_name, kv_layer, attn_metadata, **kwargs):
        pass

    @abstractmethod
    def wait_for_save(self):
        pass

    def get_transfer_results(self, finished_req_ids):
        return KVConnectorTransferResults()

    def get_block_ids_with_load_errors(self):
        return set()

    def build_connector_worker_meta(self):
        return None

    def shutdown(self):
        return None

    def get_handshake_metadata(self):
        return None

    def get_loaded_kv_cache_group_ids(self, request):
        return self._kv_cache_config.prefix_cacheable_group_ids

    @abstractmethod
    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        pass

    def get_external_cache_hit_sources(self, request, num_external_tokens):
        return {}

    @abstractmethod
    def update_state_after_alloc(self, request, blocks, num_external_tokens):
        pass

    @abstractmethod
    def build_connector_meta(self, scheduler_output):
        pass

    def on_new_request(self, request):
        return

    def update_connector_output(self, connector_output):
        return

    def request_finished(self, request, block_ids):
        return False, None

    def has_pending_push_work(self):
        return False

    def get_finished_count(self):
        return None

    def set_xfer_handshake_metadata_pp_aware(self, metadata):
        return None

    def take_events(self):
        return ()

    def reset_cache(self):
        return None
