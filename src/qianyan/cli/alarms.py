"""The options of alarms that are read aloud, and what is shown of them."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated

import typer

from qianyan.cli.options import option
from qianyan.cli.terminal import printable
from qianyan.errors import ConfigError

if TYPE_CHECKING:
    from qianyan.cli.run_display import RunDisplay
    from qianyan.inspection.alarms.announcer import Announcer
    from qianyan.inspection.alarms.places import Places
    from qianyan.inspection.alarms.voices import Voice, VoiceSettings
    from qianyan.inspection.folder import ResultsFolder
    from qianyan.inspection.inspector import LookSettings, OpenLook
    from qianyan.inspection.records import Alarm, Inspection

Speak = Annotated[
    bool, option("--speak", "read an alarm aloud for each picture with findings, into alarms/")
]
SpeakOn = Annotated[
    str | None,
    option("--speak-on", "speak of such findings only, in the words of --fail-on; else of fire, "
            "smoke, possible fire and smoke, and bare heads"),
]  # fmt: skip
Place = Annotated[
    str | None,
    option("--place", 'where the pictures were taken, as alarms say it: "3 号塔吊下", or '
            '"crane3/*=3 号塔吊下; gate*=东门" by file or URL'),
]  # fmt: skip
VoiceModel = Annotated[
    str | None,
    option("--voice-model", "what reads alarms aloud: the folder or hub id of a Qwen2.5-Omni, or a "
            "model name at --voice-url; else the model that looks"),
]  # fmt: skip
VoiceUrl = Annotated[
    str | None, option("--voice-url", "an OpenAI-compatible endpoint that reads alarms aloud")
]
VoiceKey = Annotated[str | None, option("--voice-key", "the key of --voice-url")]
VoiceName = Annotated[str | None, option("--voice", "whose voice: Chelsie, Ethan …")]


@dataclass(frozen=True, kw_only=True)
class SpeakOptions:
    """Whether alarms are read aloud, of what, and by whom."""

    speak: Speak = False
    speak_on: SpeakOn = None
    place: Place = None
    voice_model: VoiceModel = None
    voice_url: VoiceUrl = None
    voice_key: VoiceKey = None
    voice: VoiceName = None


@dataclass(frozen=True)
class AlarmOptions:
    """How alarms are worded and which voice reads them aloud."""

    voice: "VoiceSettings"
    places: "Places"
    levels: frozenset[str] | None


def read_alarm_options(context: typer.Context, given: SpeakOptions) -> AlarmOptions | None:
    """Take the options of alarms; None where none are to be read aloud.

    Raises ConfigError for an option on the command line that means nothing without --speak.
    """
    if not given.speak:
        _refuse_what_means_nothing(context)
        return None
    from qianyan.inspection.alarms.places import Places, parse_places
    from qianyan.inspection.alarms.voices import VoiceSettings
    from qianyan.inspection.gate import parse_fail_on

    return AlarmOptions(
        voice=VoiceSettings(
            model=given.voice_model,
            base_url=given.voice_url,
            api_key=given.voice_key,
            voice=given.voice,
        ),
        places=parse_places(given.place) if given.place else Places(),
        levels=parse_fail_on(given.speak_on, "--speak-on") if given.speak_on else None,
    )


def _refuse_what_means_nothing(context: typer.Context) -> None:
    """Refuse options without --speak, unless variables or a file set them for other runs."""
    for name in (one.name for one in fields(SpeakOptions) if one.name != "speak"):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise ConfigError(
                f"--{name.replace('_', '-')} is given without --speak; expected both, or neither."
            )


def announcing(
    options: AlarmOptions | None,
    settings: "LookSettings",
    voice: "Voice | None",
    folder: "ResultsFolder",
    display: "RunDisplay",
) -> AbstractContextManager["Announcer | None"]:
    """Get ready to read alarms aloud, unless none are to be."""
    from qianyan.inspection.alarms.announcer import Announcer
    from qianyan.inspection.alarms.sentences import AlarmForm

    if options is None or voice is None:
        return nullcontext()

    def tell(inspection: "Inspection", alarm: "Alarm") -> None:
        text = printable(alarm.text)
        if alarm.error is None:
            display.say("alarm", text=text, file=folder.path / str(alarm.file))
        else:
            display.say("alarm_failed", text=text, why=printable(alarm.error.message))

    form = AlarmForm(lang=settings.lang, levels=options.levels, max_objects=settings.max_objects)
    return Announcer(folder, voice, form, options.places, tell=tell)


def is_to_speak(options: AlarmOptions | None, settings: "LookSettings") -> bool:
    """Say whether the model that looks reads alarms aloud, too."""
    return options is not None and options.voice.is_of(settings)


def open_alarm_voice(
    options: AlarmOptions | None, settings: "LookSettings", opened: "OpenLook"
) -> "Voice | None":
    """Load what reads alarms aloud, if any are to be."""
    from qianyan.inspection.alarms.voices import open_voice

    return None if options is None else open_voice(options.voice, settings, opened)
