"""The codec profiles that an engine offers, or encodes by."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sliceserve.codec.profile_store import ProfileStore
from sliceserve.engine.messages import ProfileInfo
from sliceserve.models.errors import ModelError
from sliceserve.models.files import cache_dir

if TYPE_CHECKING:
    # Torch comes with them, which a server's API process does without.
    from sliceserve.codec.base import Codec
    from sliceserve.codec.profile import Profile
    from sliceserve.configs import CodecConfig

logger = logging.getLogger(__name__)

# Hears a sentence about what takes long.
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class OfferedProfile:
    """What others are told of a profile, and the decoder of its packets."""

    info: ProfileInfo
    codec: "Codec"


def profile_store() -> ProfileStore:
    """The profiles of this machine, in the cache folder."""
    return ProfileStore(cache_dir() / "profiles")


def offered_profiles(path: Path, cuts: Sequence[int], tell: Tell) -> list[OfferedProfile]:
    """Profiles for the model in the folder ``path`` at each of ``cuts``: one for clients that let
    packets carry token ids, one for those that hide them. They come from the store, or are made
    now, which takes minutes.

    None, and a warning in the log, where they cannot be made: the other codecs need none.
    """
    from sliceserve.calibration import CalibrationError, profiles_of

    store = profile_store()
    layers = ", ".join(map(str, cuts))

    def progress(done: int, total: int) -> None:
        tell(f"Calibrating the codec for cuts {layers}: {100 * done // total} %")

    try:
        profiles = profiles_of(path, cuts, ("state", "none"), progress, store)
        return [_offer(path, profile, store) for profile in profiles.values()]
    except (CalibrationError, ModelError) as error:
        logger.warning("the calibrated codec is not offered: %s", error)
    except OSError as error:
        logger.warning(
            "the calibrated codec is not offered, for its profiles cannot be kept in %s: %s; set "
            "SLICESERVE_CACHE to a folder with room for them",
            store.folder,
            error,
        )
    return []


def encoder_for_profile(path: Path, cut: int, digest: str | None, config: "CodecConfig") -> "Codec":
    """The encoder of a head below ``cut``, by the profile that the server has named.

    Raises ModelError for a profile that is missing, damaged, or not for this model and cut, and
    for one that puts token ids into packets where ``config`` hides them.
    """
    from sliceserve.codec.profile import Profile, ProfileError
    from sliceserve.models.resolve import fingerprint

    if digest is None:
        raise ModelError(f"codec {config.name!r} needs a profile, and none was named")
    store = profile_store()
    if (data := store.get(digest)) is None:
        raise ModelError(
            f"profile {digest} of codec {config.name!r} is not in {store.folder}; a server that "
            "offers the codec hands its profile over"
        )
    try:
        profile = Profile.from_bytes(data)
    except ProfileError as error:
        raise ModelError(f"profile {digest} cannot be used: {error}") from error
    if (profile.model, profile.cut) != (fingerprint(path), cut):
        raise ModelError(
            f"profile {digest} is for cut {profile.cut} of model {profile.model}, but {cut} layers "
            f"of {fingerprint(path)} run here"
        )
    if config.calibrated.hide_tokens and profile.predictor != "none":
        raise ModelError(f"profile {digest} puts token ids into packets, but hide_tokens is set")
    return _codec(path, profile, config)


def _offer(path: Path, profile: "Profile", store: ProfileStore) -> OfferedProfile:
    from sliceserve.configs import CodecConfig

    codec = _codec(path, profile, CodecConfig(name="calibrated"))
    info = ProfileInfo(
        codec=codec.wire_id,
        cut=profile.cut,
        predictor=profile.predictor,
        digest=profile.digest,
        num_bytes=store.path(profile.digest).stat().st_size,
    )
    return OfferedProfile(info, codec)


def _codec(path: Path, profile: "Profile", config: "CodecConfig") -> "Codec":
    from sliceserve.codec.registry import build_codec
    from sliceserve.models.embeddings import read_embeddings

    embeddings = read_embeddings(path) if profile.predictor != "none" else None
    return build_codec(config, profile.hidden_size, profile, embeddings)
