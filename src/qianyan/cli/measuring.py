"""The verb that tries a model or an endpoint once."""

import typer

from qianyan.cli.exit_codes import UNUSABLE
from qianyan.cli.options import (
    ApiKey,
    BaseUrl,
    Config,
    Debug,
    Device,
    DtypeOption,
    LangOption,
    Model,
    look_settings,
)


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
    from qianyan.inspection.inspector import try_look
    from qianyan.inspection.remote.probe import probe
    from qianyan.inspection.remote.profile import save_profile
    from qianyan.inspection.remote.profile_words import profile_lines

    if base_url is None:
        print(try_look(look_settings(context)))
        return
    profile = probe(base_url, None if model == "bundled" else model, api_key)
    print("\n".join(profile_lines(profile, lang)))
    print(f"saved to {save_profile(profile)}")
    if not profile.can_place_boxes:
        raise typer.Exit(UNUSABLE)
