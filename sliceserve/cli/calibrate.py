"""`sliceserve calibrate`: make the codec's profiles of a model before they are needed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from sliceserve.cli import options
from sliceserve.cli.bench.options import Json, numbers
from sliceserve.cli.console import measured

if TYPE_CHECKING:
    from sliceserve.codec.profile import Profile

PREDICTORS = ("state", "none")


def calibrate(
    model: options.Model = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            help='Layers before the cut, as "8,15,22"; repeatable.',
            show_default="the cuts that a server offers",
        ),
    ] = None,
    predictor: Annotated[
        str,
        typer.Option(
            help='What packets are predicted from: "state" (token id and the state before it), '
            '"token" (its id), "none" (packets then carry no token ids); several as a list.'
        ),
    ] = ",".join(PREDICTORS),
    text: Annotated[
        Path | None,
        typer.Option(
            help="A file of text like that to be sent; up to 32,000 tokens of it are read.",
            show_default="the text that is shipped",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write the profiles to this folder, too, by their names.",
            show_default="to the cache alone, where servers find them",
        ),
    ] = None,
    no_transform: Annotated[
        bool,
        typer.Option(
            "--no-transform",
            help="Do without matrices: for large models on CPUs, where a product with one takes "
            "longer than the rest of the codec. Costs bits.",
        ),
    ] = False,
    config_file: options.ConfigFile = None,
    json: Json = False,
) -> None:
    """Measure a model's hidden states at its cuts, for the calibrated codec.

    Servers do so by themselves when a profile is missing; a profile that is made here takes the
    place of the one that they use.
    """
    from sliceserve.calibration import calibrate as make_profiles
    from sliceserve.calibration import default_store, keep
    from sliceserve.cli.bench.report import finish, make_table
    from sliceserve.configs import ModelConfig
    from sliceserve.engine.build import offered_cuts
    from sliceserve.models.resolve import resolve_model
    from sliceserve.models.spec import ModelSpec

    predictors = [_predictor(name) for name in predictor.split(",")]
    settings: ModelConfig = options.client_config(config_file, model=model).model
    path = resolve_model(settings.model, settings.trust_remote_code)
    if split:
        cuts = [cut for part in split for cut in numbers(part)]
    else:
        layers = options.SERVER.engine.layers
        cuts = offered_cuts(layers, ModelSpec.load(path).num_layers)
    words = None if text is None else text.read_text(encoding="utf-8")
    with measured("calibrating") as progress:
        profiles = make_profiles(
            path, cuts, predictors, words, transform=not no_transform, progress=progress
        )
    results = []
    for profile in profiles.values():
        keep(profile, default_store())
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            (output / f"{profile.digest}.safetensors").write_bytes(profile.to_bytes())
        results.append(_described(settings.model, profile))
    columns = ["split", "predictor", "profile", "MB"]
    rows = [
        [str(r["split"]), r["predictor"], r["profile"][:12], r["num_bytes"] / 1e6] for r in results
    ]
    finish(results, json, make_table(f"Profiles of {settings.model}", columns, rows))


def _predictor(name: str) -> Any:
    from sliceserve.codec.profile import Predictor

    known = get_args(Predictor)
    if name.strip() not in known:
        raise typer.BadParameter(
            f"{name.strip()!r} is none of {', '.join(known)}", param_hint="--predictor"
        )
    return name.strip()


def _described(model: str, profile: "Profile") -> dict[str, Any]:
    return {
        "model": model,
        "split": profile.cut,
        "predictor": profile.predictor,
        "profile": profile.digest,
        "num_bytes": len(profile.to_bytes()),
    }
