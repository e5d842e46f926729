"""Frozen settings for every part. What derives from a setting is a property where it is used."""

from sliceserve.configs.chat import ChatConfig
from sliceserve.configs.codec import CalibratedConfig, CodecConfig, RansConfig, SlicerConfig
from sliceserve.configs.engine import EngineConfig, SchedulerConfig
from sliceserve.configs.model import DEFAULT_MODEL, CacheConfig, LayerConfig, ModelConfig
from sliceserve.configs.sampling import SamplingParams
from sliceserve.configs.serving import (
    ClientConfig,
    GatewayConfig,
    HttpConfig,
    Patience,
    ServerConfig,
)
from sliceserve.configs.tenants import DEFAULT_TENANT, Keyring, TenantConfig

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_TENANT",
    "CacheConfig",
    "CalibratedConfig",
    "ChatConfig",
    "ClientConfig",
    "CodecConfig",
    "EngineConfig",
    "GatewayConfig",
    "HttpConfig",
    "Keyring",
    "LayerConfig",
    "ModelConfig",
    "Patience",
    "RansConfig",
    "SamplingParams",
    "SchedulerConfig",
    "ServerConfig",
    "SlicerConfig",
    "TenantConfig",
]
