"""`/v1/audio/transcriptions` and `/translations`: what is said in a file, by a model of the Whisper family."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ..audio.formats import Writer
from ..audio.languages import language_code
from ..audio.transcript import Heard, Transcript
from ..errors import GossamerError
from ..generation.speech import transcribe
from .errors import ApiError, JsonResponse
from .fields import Fields
from .replies import while_there

if TYPE_CHECKING:
    from starlette.types import Receive, Scope

    from .served import Registry, Served
    from .settings import Settings

_FORMS = ("json", "text", "srt", "verbose_json", "vtt")
_MOST_FIELDS = 32


@dataclass(frozen=True)
class Asked:
    """A request, read.

    Attributes:
        name: Of the model, as the client wrote it.
        served: The model.
        sound: The file.
        form: Of the answer.
        options: As for `Model.transcribe`.
        segments: Whether the answer tells of segments.
    """

    name: str
    served: Served
    sound: bytes
    form: str
    options: dict[str, Any]
    segments: bool


async def read_speech(
    scope: Scope, receive: Receive, registry: Registry, settings: Settings, *, translate: bool
) -> Asked:
    """Reads a request.

    Args:
        scope: The request's.
        receive: Gives its body, of which there is a limit.
        registry: The models.
        settings: The server's.
        translate: Whether English is to be written, whatever is said.

    Raises:
        ApiError: it is no good.
    """
    values, sound = await _form(Request(scope, receive), settings)
    fields = Fields(values)
    name = fields.need("model", str)
    served, adapters = registry.find(name)
    served.need("speech")
    if adapters:
        raise fields.refuse("model", f"{name} is an adapter, and speech is heard without", "model_not_supported")
    form = fields.take("response_format", str, "json") or "json"
    if form not in _FORMS:
        raise fields.refuse("response_format", f"must be one of {', '.join(_FORMS)}, got {form!r:.80}", "invalid_value")
    options: dict[str, Any] = {"task": "translate" if translate else "transcribe"}
    if not translate and (language := fields.take("language", str)):
        try:
            options["language"] = language_code(language)
        except GossamerError as error:
            raise fields.refuse("language", str(error), "invalid_value") from None
    if prompt := fields.take("prompt", str):
        options["prompt"] = prompt
    if temperature := _number(fields, "temperature"):
        options["temperatures"] = (temperature,)
    times = fields.take("timestamp_granularities[]", list, []) or []
    if any(each not in ("word", "segment") for each in times) or (times and form != "verbose_json"):
        raise fields.refuse(
            "timestamp_granularities[]", "may be word and segment, with response_format verbose_json", "invalid_value"
        )
    options["words"] = "word" in times
    fields.only("stream", "false", "False")
    fields.end()
    return Asked(name, served, sound, form, options, not times or "segment" in times)


async def _form(request: Request, settings: Settings) -> tuple[dict[str, Any], bytes]:
    """The parameters of a form, those whose names end in [] as lists, and its file."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ApiError(415, "the request's content type must be multipart/form-data")
    try:
        form = await request.form(max_files=1, max_fields=_MOST_FIELDS, max_part_size=settings.max_body)
    except (MultiPartException, ValueError) as error:
        raise ApiError(400, f"the request's form is not valid: {error}") from None
    except HTTPException as error:  # as which Starlette passes the first of them on
        raise ApiError(error.status_code, f"the request's form is not valid: {error.detail}") from None
    async with request.form():
        values: dict[str, Any] = {}
        sound: bytes | None = None
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name != "file":
                    raise ApiError(400, f"{name}: there is no such file; it is called file", param=name)
                sound = await value.read()
            elif name.endswith("[]"):
                values.setdefault(name, []).append(value)
            elif name in values:
                raise ApiError(400, f"{name}: stands twice", param=name)
            else:
                values[name] = value
    if not sound:
        raise ApiError(400, "file: is missing, or empty", param="file", code="missing_required_parameter")
    return values, sound


def _number(fields: Fields, name: str) -> float:
    text = fields.take(name, str)
    try:
        value = float(text) if text else 0.0
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise fields.refuse(name, f"must be a number from 0 to 1, got {text!r:.80}", "invalid_value")
    return value


async def answer(asked: Asked, receive: Receive, log: dict[str, Any]) -> Response:
    """Answers a request.

    Raises:
        ApiError: the file is no sound, or there is too much to do already.
    """
    log["model"] = asked.name
    asked.served.admit(1)
    left = threading.Event()
    try:
        found = await while_there(receive, asked.served.compute(partial(_transcribe, asked, left)))
    finally:
        left.set()  # the thread ends with the segment that it is at
        asked.served.release()
    log["seconds_of_sound"] = round(found.heard.seconds, 2)
    if asked.form in ("srt", "vtt"):
        writer = Writer(asked.form)
        cues = [writer.add(segment) for segment in found.segments]
        return PlainTextResponse("".join([writer.begin(), *cues, writer.end(found.heard)]))
    if asked.form == "text":
        return PlainTextResponse(found.text + "\n")
    return JsonResponse(_verbose(asked, found) if asked.form == "verbose_json" else {"text": found.text})


def _transcribe(asked: Asked, left: threading.Event) -> Transcript:
    if left.is_set():  # while others were heard
        return Transcript([], Heard())
    try:
        return transcribe(asked.served.model, BytesIO(asked.sound), cancel=left.is_set, **asked.options)
    except GossamerError as error:
        raise ApiError(400, str(error), param="file", code="invalid_value") from None


def _verbose(asked: Asked, found: Transcript) -> dict[str, Any]:
    document: dict[str, Any] = {
        "task": asked.options["task"],
        "language": found.heard.language,
        "duration": round(found.heard.seconds, 2),
        "text": found.text,
    }
    if asked.options["words"]:
        words = [word for segment in found.segments for word in segment.words or ()]
        document["words"] = [{"word": word.text.strip(), "start": word.start, "end": word.end} for word in words]
    if asked.segments:
        document["segments"] = [
            {
                "id": number,
                "seek": 0,
                "start": segment.start,
                "end": segment.end,
                "text": segment.text,
                "tokens": segment.tokens,
                "temperature": segment.temperature,
                "avg_logprob": segment.log_probability,
                "compression_ratio": segment.compression,
                "no_speech_prob": segment.no_speech,
            }
            for number, segment in enumerate(found.segments)
        ]
    return document
