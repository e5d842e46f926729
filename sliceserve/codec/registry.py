"""Codecs by configuration, for who encodes, and by wire id, for who decodes."""

from typing import get_args

import torch

from sliceserve.codec.base import Codec, CodecError, Run
from sliceserve.codec.calibrated import WIRE_ID as CALIBRATED
from sliceserve.codec.calibrated import CalibratedCodec
from sliceserve.codec.int8 import Int8Codec
from sliceserve.codec.passthrough import PassthroughCodec
from sliceserve.codec.profile import Profile
from sliceserve.codec.rans import RansCodec
from sliceserve.codec.slicer import SlicerCodec
from sliceserve.configs import CodecConfig
from sliceserve.configs.codec import CodecName


def build_codec(
    config: CodecConfig,
    hidden_size: int,
    profile: Profile | None = None,
    embeddings: torch.Tensor | None = None,
) -> Codec:
    """The codec that ``config`` names, with its settings for the encoder.

    "calibrated" needs the ``profile`` of the cut, and ``embeddings`` if that one predicts; the
    others have no use for them.
    """
    if config.name == "calibrated":
        if profile is None:
            raise CodecError(
                "the calibrated codec needs a profile of this model and cut; make one with "
                "`sliceserve calibrate`, or choose another codec"
            )
        return CalibratedCodec(config.calibrated, profile, embeddings)
    if config.name == "slicer":
        return SlicerCodec(config.slicer, hidden_size)
    if config.name == "int8":
        return Int8Codec(hidden_size)
    if config.name == "rans":
        return RansCodec(config.rans, hidden_size)
    return PassthroughCodec(getattr(torch, config.name), hidden_size)


def wire_id(config: CodecConfig, hidden_size: int) -> str:
    """What the packets of the codec that ``config`` names are called, with or without a profile."""
    if config.name == "calibrated":
        return CALIBRATED
    return build_codec(config, hidden_size).wire_id


def codec_for_wire(wire_id: str, hidden_size: int) -> Codec:
    """The codec that reads packets under ``wire_id``. Raises CodecError for an unknown one."""
    codecs = {codec.wire_id: codec for codec in _all_codecs(hidden_size)}
    if wire_id not in codecs:
        raise CodecError(f"codec {wire_id!r} is not known here; known are {', '.join(codecs)}")
    return codecs[wire_id]


def known_codecs() -> list[str]:
    """Wire ids, the preferred first."""
    return [codec.wire_id for codec in _all_codecs(hidden_size=1)]


def warm_up(codec: Codec, device: torch.device | str = "cpu") -> None:
    """Compile what the codec needs on ``device``, so that no request waits for it.

    Seconds the first time on a machine; numba and Triton then keep the result on disk.
    """
    hidden = torch.zeros(1, codec.hidden_size, device=device)
    packets = codec.encode(hidden, [Run(1, [0])])
    codec.check(packets[0])
    codec.decode(packets, hidden, [Run(1)])


def _all_codecs(hidden_size: int) -> list[Codec]:
    """Those that need no profile."""
    names = [name for name in get_args(CodecName) if name != "calibrated"]
    return [build_codec(CodecConfig(name=name), hidden_size) for name in names]
