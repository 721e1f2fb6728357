"""The verbs that try a model: on labelled photos, on an endpoint, or once."""

from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from qianyan.cli.exit_codes import DONE, IN_PART, UNUSABLE
from qianyan.cli.options import (
    ApiKey,
    BaseUrl,
    Config,
    Debug,
    Device,
    DtypeOption,
    Json,
    LangOption,
    Look,
    MaxObjects,
    MaxPixels,
    Model,
    QuantizeOption,
    look_settings,
    option,
)


def evaluate(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="folder of labelled photos")],
    annotations: Annotated[
        Path, option("--annotations", "COCO-like labels: fire, smoke, person, helmet, head")
    ],
    model: Model = "bundled",
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    look: Look = "auto",
    lang: LangOption = "zh",
    max_objects: MaxObjects = 10,
    max_pixels: MaxPixels = None,
    device: Device = "cpu",
    dtype: DtypeOption = "auto",
    quantize: QuantizeOption = "none",
    json: Json = False,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Measure recall, false alarms and F1 of a model against labelled photos.

    Example: qianyan eval photos/images --annotations photos/annotations_val.json
    """
    from qianyan.inspection.evaluate import evaluate as score
    from qianyan.inspection.evaluate import evaluation_table
    from qianyan.inspection.inspector import open_look
    from qianyan.inspection.service import inspect_source
    from qianyan.labels.reading import read_coco

    settings = look_settings(context)
    photos = read_coco(annotations, images=folder)
    opened = open_look(settings)
    result = score(
        (photo, inspect_source(str(photo.path), opened.look, settings.fetch_limits))
        for photo in photos
    )
    print(dumps(result.as_record(), indent=1) if json else evaluation_table(result))
    raise typer.Exit(IN_PART if result.failed else DONE)


def doctor(
    context: typer.Context,
    model: Model = "bundled",
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
    device: Device = "cpu",
    dtype: DtypeOption = "auto",
    lang: LangOption = "zh",
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Find out how an endpoint's model counts coordinates and save it; or try a local model.

    Example: qianyan doctor --base-url http://127.0.0.1:8000/v1
    """
    from qianyan.inspection.endpoint import probe
    from qianyan.inspection.inspector import try_look
    from qianyan.inspection.profile import save_profile
    from qianyan.inspection.profile_words import profile_lines

    if base_url is None:
        print(try_look(look_settings(context)))
        return
    profile = probe(base_url, None if model == "bundled" else model, api_key)
    print("\n".join(profile_lines(profile, lang)))
    print(f"saved to {save_profile(profile)}")
    if not profile.can_place_boxes:
        raise typer.Exit(UNUSABLE)
