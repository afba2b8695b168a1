"""Recording captions over HTTP: pictures are shown one by one, and what is said of each is kept with a manifest."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from io import BytesIO
from typing import TypeVar

import numpy as np
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response
from numpy.typing import NDArray
from starlette.types import ASGIApp

from saysee.data.validate import RECORDING_LIMITS
from saysee.features.audio import load_waveform
from saysee.features.containers import FORMATS, find_format
from saysee.serving.counting import Places
from saysee.serving.guards import LOG, Access, Guard, held_by
from saysee.serving.limits import ServingLimits
from saysee.serving.pictures import JPEG, answer_picture, file_name
from saysee.serving.recordings import Recordings, checked_name
from saysee.serving.refusal import Refusal
from saysee.serving.schemas import (
    About,
    AboutLimits,
    Caption,
    Health,
    ItemId,
    NextPicture,
    NextQuery,
    Recorded,
    VoiceQuery,
    body_of,
    checked_id,
    refusals,
)
from saysee.serving.web import make_web
from saysee.serving.workers import Workers

Result = TypeVar("Result")


class _Recording:
    """What the routes share: the recordings, used in one thread, and those that decode."""

    def __init__(self, recordings: Recordings, limits: ServingLimits) -> None:
        self.recordings = recordings
        self.limits = limits
        self.places = Places(limits.questions)
        self.decoders = Workers(limits.decoders, "saysee-decode")
        self._keeper = Workers(1, "saysee-keep")

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self.decoders.close()
            self._keeper.close()

    async def keep(self, work: Callable[[], Result]) -> Result:
        """Do something with the recordings.

        Raises:
            Refusal: 404, an id is not there; 500, the disk does not take it.
        """
        try:
            return await self._keeper.run(work)
        except KeyError:
            raise Refusal(404, "there is no such picture or recording (any more)") from None
        except OSError as error:
            LOG.error("cannot write: %s", error.strerror)
            raise Refusal(500, f"the recording cannot be written ({error.strerror}); nothing has changed") from None

    async def waveform(self, request: Request) -> NDArray[np.float32]:
        """Decode what was sent: (S,) at 16 kHz.

        Raises:
            Refusal: 400, nothing was sent; 415, no recording.
            AudioError: it does not decode, is out of the limits, or is silent.
        """
        body = await request.body()
        if not body:
            raise Refusal(400, "the body is empty; send a recording")
        if find_format(BytesIO(body)) is None:
            raise Refusal(415, f"the body is no recording of a known format; {', '.join(FORMATS)} are read")
        limits = replace(self.limits.audio, min_seconds=RECORDING_LIMITS.min_seconds)
        waveform = await self.decoders.run(lambda: load_waveform(body, limits, name="the recording"))
        held_by(request).add(waveform.nbytes)
        return waveform


def create_record_app(
    recordings: Recordings, limits: ServingLimits | None = None, access: Access | None = None
) -> ASGIApp:
    """Return the server's application for recording captions.

    Args:
        recordings: from now on they belong to a thread of the application.
        limits: None takes the defaults.
        access: who may record; None: the loopback interface, without a token.
    """
    limits, access = limits or ServingLimits(), access or Access()
    recording = _Recording(recordings, limits)
    app = make_web("saysee record", recording.lifespan, token=access.token is not None, api=_routes(recording, access))
    return Guard(app, access, limits)


def _routes(recording: _Recording, access: Access) -> APIRouter:
    api = APIRouter()
    limits, recordings = recording.limits, recording.recordings
    pictures = len(recordings.pictures)

    @api.get("/health", responses=refusals())
    async def health() -> Health:
        """Say that the server is there. Needs no token."""
        return Health(status="ok", items=pictures, waiting=recording.places.taken)

    @api.get("/about", responses=refusals(401))
    async def about() -> About:
        """Say what this server is and can."""
        return About(
            mode="record",
            items=pictures,
            kind="picture",
            model="",
            top=0,
            rerank=0,
            fine=False,
            attention=False,
            token=access.token is not None,
            limits=AboutLimits(bytes=limits.body_bytes, seconds=limits.seconds, pixels=limits.pixels),
        )

    @api.get("/record", responses=refusals(401))
    async def recorded() -> Recorded:
        """Say what has been recorded."""
        return await recording.keep(lambda: _recorded(recordings))

    @api.get("/record/next", responses=refusals(401, 404, 422))
    async def next_picture(asked: NextQuery) -> NextPicture:
        """Give the first picture after one of which this speaker has not spoken in this language."""
        speaker, language = checked_name(asked.speaker, "speaker"), checked_name(asked.language, "language")
        found = await recording.keep(lambda: recordings.next(asked.after, speaker, language))
        if found is None:
            raise Refusal(404, "all pictures are done, or those after this one")
        number = recordings.position(found)
        return NextPicture(id=found, name=file_name(recordings.pictures[number - 1]), position=number, recorded=None)

    @api.get(
        "/record/pictures/{item_id}",
        response_class=Response,
        responses={**JPEG, **refusals(401, 404)},
    )
    async def picture(request: Request, item_id: ItemId) -> Response:
        """Return a JPEG of a picture as large as a screen, made anew from the file, without metadata."""
        path = recordings.picture(checked_id(item_id))
        if path is None:
            raise Refusal(404, "there is no such picture")
        return await answer_picture(request, path, path.name, limits.picture_side, recording.decoders)

    @api.post(
        "/record/pictures/{item_id}",
        status_code=201,
        responses=refusals(401, 404, 415, 422),
        openapi_extra=body_of("application/octet-stream", "audio/*"),
    )
    async def record(request: Request, item_id: ItemId, voice: VoiceQuery) -> Caption:
        """Keep a recording of a picture; another of the same speaker in the same language is replaced."""
        checked = checked_id(item_id)
        speaker, language = checked_name(voice.speaker, "speaker"), checked_name(voice.language, "language")
        if recordings.picture(checked) is None:
            raise Refusal(404, "there is no such picture")
        with recording.places.place():
            waveform = await recording.waveform(request)
            kept = await recording.keep(lambda: recordings.add(checked, speaker, language, waveform))
        return Caption(id=kept.id, seconds=kept.seconds)

    @api.get(
        "/record/recordings/{item_id}",
        response_class=Response,
        responses={200: {"content": {"audio/flac": {}}}, **refusals(401, 404)},
    )
    async def play(item_id: ItemId) -> Response:
        """Return a recording as FLAC: 16 kHz, one channel."""
        checked = checked_id(item_id)
        content = await recording.keep(lambda: recordings.read(checked))
        return Response(content, media_type="audio/flac")

    @api.delete("/record/recordings/{item_id}", status_code=204, responses=refusals(401, 404))
    async def forget(item_id: ItemId) -> None:
        """Forget a recording."""
        checked = checked_id(item_id)
        await recording.keep(lambda: recordings.remove(checked))

    return api


def _recorded(recordings: Recordings) -> Recorded:
    needed = recordings.needed()
    return Recorded(
        pictures=len(recordings.pictures),
        recorded=len(recordings),
        speakers=recordings.speakers(),
        languages=recordings.languages(),
        divided=needed is None,
        needed=needed,
    )
