"""Search over HTTP: a recording or a picture is sent, ranked answers come back."""

import base64
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

import numpy as np
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response
from starlette.types import ASGIApp

from saysee.models.heat import Heat, supports_attention
from saysee.search.question import Question, UnknownFormatError, read_question
from saysee.search.searcher import Answers, Searcher
from saysee.search.stores.base import Filter, Item
from saysee.serving.counting import Places
from saysee.serving.guards import LOG, Access, Guard, held_by
from saysee.serving.limits import ServingLimits
from saysee.serving.model_queue import ModelQueue
from saysee.serving.pictures import CACHING, JPEG, answer_picture, file_name
from saysee.serving.refusal import Refusal, busy
from saysee.serving.schemas import (
    TOP,
    About,
    AboutLimits,
    Answer,
    Attention,
    Health,
    HowManyQuery,
    ItemId,
    NarrowedQuery,
    SearchAnswers,
    Similar,
    body_of,
    checked_id,
    refusals,
)
from saysee.serving.web import answer_file, make_web, tag_of
from saysee.serving.workers import Workers

Result = TypeVar("Result")

_READERS = 2


class _Search:
    """What the routes share: the searcher, and the threads in which it and its files are used."""

    def __init__(self, searcher: Searcher, limits: ServingLimits) -> None:
        self.searcher = searcher
        self.limits = limits
        self.items = len(searcher.index)  # of a distributed index that is a question to another machine
        self.places = Places(limits.questions)
        self.queue = ModelQueue(searcher.encode, limits.batch, self._refresh, limits.refresh_seconds)
        self.decoders = Workers(limits.decoders, "saysee-decode")
        self.readers = Workers(_READERS, "saysee-read")

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self.queue.start()
        try:
            yield
        finally:
            self.queue.close(self.limits.drain_seconds)
            self.decoders.close()
            self.readers.close()

    async def question(self, request: Request) -> Question:
        """Decode what was sent.

        Raises:
            Refusal: 400, nothing was sent; 415, neither a recording nor a picture.
            SayseeError: it cannot be used as a question.
        """
        body = await request.body()
        if not body:
            raise Refusal(400, "the body is empty; send a recording or a picture")
        limits = self.limits
        try:
            question = await self.decoders.run(
                lambda: read_question(body, audio=limits.audio, image=limits.image, name="the question")
            )
        except UnknownFormatError as error:
            raise Refusal(415, str(error)) from None
        held_by(request).add(_size(question))
        return question

    async def item(self, item_id: str) -> Item:
        """Return an item.

        Raises:
            Refusal: 404.
        """
        (item,) = await self.readers.run(lambda: self.searcher.index.store.get([checked_id(item_id)]))
        if item is None:
            raise _gone(item_id)
        return item

    def _refresh(self) -> None:
        try:
            self.searcher.refresh()
            self.items = len(self.searcher.index)
        except Exception as error:
            LOG.error("%s: the index cannot be read anew", type(error).__name__)
            raise busy("the index cannot be read at the moment; ask again in a few seconds", 5) from None


def create_app(searcher: Searcher, limits: ServingLimits | None = None, access: Access | None = None) -> ASGIApp:
    """Return the server's application for a search.

    Args:
        searcher: answers; from now on it belongs to the application's model thread.
        limits: None takes the defaults.
        access: who may ask; None: the loopback interface, without a token.
    """
    limits, access = limits or ServingLimits(), access or Access()
    search = _Search(searcher, limits)
    app = make_web("saysee", search.lifespan, token=access.token is not None, api=_routes(search, access))
    return Guard(app, access, limits)


def _routes(search: _Search, access: Access) -> APIRouter:
    api = APIRouter()
    limits, searcher, queue = search.limits, search.searcher, search.queue
    index = searcher.index
    described = index.description

    @api.get("/health", responses=refusals())
    async def health() -> Health:
        """Say that the server is there. Needs no token."""
        return Health(status="ok", items=search.items, waiting=search.places.taken)

    @api.get("/about", responses=refusals(401))
    async def about() -> About:
        """Say what this server is and can."""
        return About(
            mode="search",
            items=search.items,
            kind=described.kind,
            model=described.model.name,
            top=TOP,
            rerank=searcher.model.config.search.rerank if described.fine else 0,
            fine=described.fine,
            attention=described.fine and described.kind == "picture" and supports_attention(searcher.model),
            token=access.token is not None,
            limits=AboutLimits(bytes=limits.body_bytes, seconds=limits.seconds, pixels=limits.pixels),
        )

    @api.post(
        "/search",
        responses=refusals(401, 415, 422),
        openapi_extra=body_of("application/octet-stream", "audio/*", "image/*"),
    )
    async def ask(request: Request, narrowed: NarrowedQuery) -> SearchAnswers:
        """Rank the items for a recording (wav, flac, ogg, opus, mp3, m4a, webm) or a picture."""
        only = Filter(narrowed.path, narrowed.since, narrowed.until)
        with search.places.place():
            begun = time.perf_counter()
            question = await search.question(request)
            decode = time.perf_counter() - begun
            done = await queue.ask(
                question,
                lambda encoded: searcher.rank(encoded, top=narrowed.top, rerank=narrowed.rerank, only=only),
            )
        answers, recording = done.result, question.kind == "recording"
        return SearchAnswers(
            kind=question.kind,
            seconds=question.seconds if recording else None,
            heard=question.heard if recording else None,
            fits=answers.fits,
            chance=answers.chance,
            answers=_answers(answers, described.folder),
            timings={"decode": decode, "wait": done.wait, "encode": done.encode, **answers.seconds},
        )

    @api.get("/items/{item_id}/similar", responses=refusals(401, 404, 422))
    async def similar(item_id: ItemId, asked: HowManyQuery) -> Similar:
        """Rank the items by how like they are to one of them."""
        checked = checked_id(item_id)
        with search.places.place():
            done = await queue.run(lambda: _if_there(checked, lambda: searcher.like(checked, top=asked.top)))
        return Similar(answers=_answers(done.result, described.folder))

    @api.post(
        "/items/{item_id}/attention",
        responses=refusals(401, 404, 415, 422),
        openapi_extra=body_of("application/octet-stream", "audio/*"),
    )
    async def attention(request: Request, item_id: ItemId) -> Attention:
        """Say where the model looks in a picture at each moment of a recording: cross-attention."""
        checked = checked_id(item_id)
        with search.places.place():
            question = await search.question(request)
            if question.kind != "recording":
                raise Refusal(415, "the body is a picture; send a recording")
            done = await queue.ask(
                question, lambda encoded: _if_there(checked, lambda: searcher.attention(encoded, checked))
            )
        return _attention(done.result, question)

    @api.get("/items/{item_id}/thumbnail", response_class=Response, responses={**JPEG, **refusals(401, 404)})
    async def thumbnail(request: Request, item_id: ItemId) -> Response:
        """Return a small JPEG of an item, without metadata."""
        checked = checked_id(item_id)
        jpeg = await search.readers.run(lambda: index.thumbnail(checked))
        if not jpeg:
            raise _gone(checked)
        return answer_file(request, jpeg, "image/jpeg", tag_of(jpeg), CACHING)

    @api.get("/items/{item_id}/picture", response_class=Response, responses={**JPEG, **refusals(401, 404)})
    async def large(request: Request, item_id: ItemId) -> Response:
        """Return a JPEG of an item as large as a screen, made anew from the file, without metadata."""
        item = await search.item(item_id)
        return await answer_picture(request, index.file(item), item.path, limits.picture_side, search.decoders)

    return api


def _gone(item_id: str) -> Refusal:
    return Refusal(404, f"the index has no item {item_id} (any more), or no picture of it")


def _if_there(item_id: str, work: Callable[[], Result]) -> Result:
    try:
        return work()
    except KeyError:
        raise _gone(item_id) from None


def _size(question: Question) -> int:
    """Return about how many bytes a question holds."""
    if question.waveform is not None:
        return question.waveform.nbytes
    return 0 if question.image is None else 3 * question.image.width * question.image.height


def _answers(answers: Answers, folder: Path) -> list[Answer]:
    return [
        Answer(
            rank=answer.rank,
            id=answer.id,
            name=file_name(answer.path.name),
            path=file_name(answer.path.relative_to(folder).as_posix()),
            taken=_date(answer.taken),
            coarse=answer.coarse,
            fine=answer.fine,
        )
        for answer in answers.answers
    ]


def _date(seconds: int) -> str | None:
    try:
        return (datetime(1970, 1, 1) + timedelta(seconds=seconds)).isoformat()
    except OverflowError:
        return None


def _attention(heat: Heat, question: Question) -> Attention:
    frames, rows, columns = heat.weights.shape
    largest = max(float(heat.weights.max(initial=0.0)), float(np.finfo(np.float32).tiny))
    weights = np.rint(heat.weights * (255 / largest)).astype(np.uint8)
    return Attention(
        rows=rows,
        columns=columns,
        frames=frames,
        **{"from": question.heard[0]},
        step=heat.step,
        weights=base64.b64encode(weights.tobytes()).decode("ascii"),
    )
