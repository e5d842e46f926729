"""Profiles by what they are for: those on disk, and those that have yet to be made."""

from collections.abc import Callable, Sequence
from pathlib import Path

from sliceserve.calibration.profiles import calibrate
from sliceserve.codec.profile import Predictor, Profile, ProfileError
from sliceserve.codec.profile_store import ProfileKey, ProfileStore
from sliceserve.models.files import cache_dir
from sliceserve.models.resolve import fingerprint

# To be raised when calibration makes other profiles of the same text: old ones are then not found.
VERSION = 3


def default_store() -> ProfileStore:
    return ProfileStore(cache_dir() / "profiles")


def profiles_of(
    path: Path,
    cuts: Sequence[int],
    predictors: Sequence[Predictor],
    progress: Callable[[int, int], None] = lambda done, total: None,
    store: ProfileStore | None = None,
) -> dict[tuple[int, Predictor], Profile]:
    """The profiles of the model in the folder ``path``, from the store where they are there; the
    rest is calibrated on the text that is shipped, and kept. Processes wait for each other.

    Raises CalibrationError and ModelError.
    """
    store = store or default_store()
    wanted = [(cut, predictor) for cut in cuts for predictor in predictors]
    model = fingerprint(path)
    found = _found(store, model, wanted)
    if len(found) == len(wanted):
        return found
    with store.locked(model):
        found = _found(store, model, wanted)
        missing = [key for key in wanted if key not in found]
        if missing:
            missing_cuts = sorted({cut for cut, _ in missing})
            missing_predictors = [p for p in predictors if any(q == p for _, q in missing)]
            made = calibrate(path, missing_cuts, missing_predictors, progress=progress)
            for profile in made.values():
                keep(profile, store)
            found |= made
    return {key: found[key] for key in wanted}


def keep(profile: Profile, store: ProfileStore) -> None:
    """Write a profile, as the one to use for its model, cut and predictor."""
    store.assign(_key(profile.model, profile.cut, profile.predictor), store.put(profile.to_bytes()))


def _found(
    store: ProfileStore, model: str, wanted: Sequence[tuple[int, Predictor]]
) -> dict[tuple[int, Predictor], Profile]:
    found = {}
    for cut, predictor in wanted:
        digest = store.find(_key(model, cut, predictor))
        data = None if digest is None else store.get(digest)
        if data is None:
            continue
        try:
            found[cut, predictor] = Profile.from_bytes(data)
        except ProfileError:
            # Of another release: it is made again.
            continue
    return found


def _key(model: str, cut: int, predictor: Predictor) -> ProfileKey:
    return ProfileKey(model, cut, predictor, VERSION)
