"""What the API takes and gives, as the OpenAPI description says it."""

import re
from datetime import date
from typing import Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from saysee.search.stores.base import Kind
from saysee.serving.refusal import REASONS, Refusal

ID_PATTERN = "^[0-9a-f]{32}$"


class Error(BaseModel):
    """Why a request was not done."""

    error: str = Field(description="one line: what was received, what is allowed, what to do")


class Health(BaseModel):
    """That the server is there."""

    status: Literal["ok"]
    items: int = Field(description="that can be found, or pictures to speak of")
    waiting: int = Field(description="questions that are being decoded, wait for the model or are with it")


class AboutLimits(BaseModel):
    """What a body may be."""

    bytes: int
    seconds: float = Field(description="of a recording")
    pixels: int = Field(description="width times height of a picture")


class About(BaseModel):
    """What this server is and can."""

    mode: Literal["search", "record"]
    items: int = Field(description="that can be found, or pictures to speak of")
    kind: Kind = Field(description="what the items are")
    model: str = Field(description="name of the model's folder; empty where nothing is searched")
    top: int = Field(description="answers to a question that does not say how many")
    rerank: int = Field(description="k of the fine stage where a question does not say it; 0: none")
    fine: bool = Field(description="whether there is a fine stage")
    attention: bool = Field(description="whether the model can say where it looked")
    token: bool = Field(description="whether a token is required")
    limits: AboutLimits


class Answer(BaseModel):
    """An item in the place that it was ranked."""

    rank: int = Field(description="from 1")
    id: str = Field(pattern=ID_PATTERN)
    name: str = Field(description="of the file")
    path: str = Field(description="of the file below the folder; what is no UTF-8 in it is replaced")
    taken: str | None = Field(description="date and time on the clock of that place; null where it is absurd")
    coarse: float = Field(description="cosine similarity")
    fine: float | None = Field(description="matching log-odds; null below the best k and without a fine stage")


class Similar(BaseModel):
    """Items that are like another."""

    answers: list[Answer]


class SearchAnswers(BaseModel):
    """The answers to a question."""

    kind: Kind = Field(description="what the question is")
    seconds: float | None = Field(description="of the recording that was sent; null for a picture")
    heard: tuple[float, float] | None = Field(description="from and to, seconds: what was left between the silences")
    fits: bool | None = Field(description="false: the best answer scores as mismatched ones do; null: not known")
    chance: float | None = Field(description="probability that mismatched items score as the best one here does")
    answers: list[Answer]
    timings: dict[str, float] = Field(description="seconds: decode, wait, encode, coarse, fine")


class Attention(BaseModel):
    """Where the model looked in a picture at each moment of a recording: cross-attention, not an explanation."""

    rows: int
    columns: int
    frames: int
    from_: float = Field(alias="from", description="seconds into the recording that was sent, of the first frame")
    step: float = Field(description="seconds from one frame to the next")
    weights: str = Field(description="base64 of frames x rows x columns bytes; 255 is the largest of all")


class Caption(BaseModel):
    """A recording that is kept."""

    id: str = Field(pattern=ID_PATTERN)
    seconds: float


class Recorded(BaseModel):
    """What has been recorded."""

    pictures: int = Field(description="that are shown")
    recorded: int = Field(description="recordings that are kept")
    speakers: list[str]
    languages: list[str]
    divided: bool = Field(description="whether the manifest has pictures in train, dev and test, so that it can train")
    needed: str | None = Field(description="what is missing for that")


class NextPicture(BaseModel):
    """A picture to speak of."""

    id: str = Field(pattern=ID_PATTERN)
    name: str = Field(description="of the file")
    position: int = Field(description="among the pictures, from 1")
    recorded: Caption | None = Field(description="by this speaker in this language")


def _one_day(value: Any) -> Any:
    # pydantic would also take a number of seconds since 1970
    if isinstance(value, str) and not re.fullmatch(r"\d{4}-\d\d-\d\d", value, re.ASCII):
        raise ValueError("it must be written as 2024-05-31")
    return value


def _whole(value: Any) -> Any:
    # pydantic would also take `1_0`, ` 10` and `10.0`
    if isinstance(value, str) and not re.fullmatch(r"-?\d{1,9}", value, re.ASCII):
        raise ValueError("it must be a whole number")
    return value


TOP, MOST_ANSWERS = 12, 100
"""Answers to a question that does not say how many, and the most it may ask for (ours)."""

MOST_RERANKED = 256
"""k of the fine stage that a question may ask for (ours)."""

# without `null` in the description: a query has none
_Absent = SkipJsonSchema[None]
_Day = Annotated[date, BeforeValidator(_one_day)] | _Absent
_Top = Annotated[int, Field(ge=1, le=MOST_ANSWERS), BeforeValidator(_whole)]
_Rerank = Annotated[int, Field(ge=0, le=MOST_RERANKED), BeforeValidator(_whole)]
_Pattern = Annotated[str, Field(min_length=1, max_length=400)]
_Name = Annotated[str, Field(max_length=64)]


class HowMany(BaseModel):
    """How many answers are given."""

    model_config = ConfigDict(extra="forbid")

    top: _Top = Field(TOP, description="how many answers")


class Narrowed(HowMany):
    """Which items a question is asked of, and how many answers are given."""

    rerank: _Rerank | _Absent = Field(None, description="k of the fine stage; see `about`")
    path: _Pattern | _Absent = Field(None, description="pattern for the whole path; `*` stands for any characters")
    since: _Day = Field(None, description="first day on which it may have been taken")
    until: _Day = Field(None, description="last day, itself included")


class Voice(BaseModel):
    """Who speaks."""

    model_config = ConfigDict(extra="forbid")

    speaker: _Name = Field("", description="empty: not known")
    language: _Name = Field("", description="empty: not known")


class NextAsked(Voice):
    """After which picture the next is asked for."""

    after: _Name = Field("", description="id of a picture; empty: from the beginning")


# Not checked by the framework: what is no id is not there, which is a 404 and not a 422.
ItemId = Annotated[str, Path(json_schema_extra={"pattern": ID_PATTERN}, description="of an item, as answers give it")]
NarrowedQuery = Annotated[Narrowed, Query()]
HowManyQuery = Annotated[HowMany, Query()]
VoiceQuery = Annotated[Voice, Query()]
NextQuery = Annotated[NextAsked, Query()]


def checked_id(item_id: str) -> str:
    """Return an id.

    Raises:
        Refusal: 404, it is none.
    """
    if not re.fullmatch(ID_PATTERN.strip("^$"), item_id):
        raise Refusal(404, "an id has 32 hexadecimal digits; answers give them")
    return item_id


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of refusals: those that are named, and those that every request may meet."""
    described: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*statuses, 400, 403, 408, 413, 429, 500, 503}):
        described[status] = {"model": Error, "description": REASONS[status]}
        if status in (429, 503):
            described[status]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return described


def body_of(*kinds: str) -> dict[str, Any]:
    """Return the OpenAPI description of a body that is a file; its Content-Type plays no part."""
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}
    description = "the file as it is: what it holds is told by its content"
    return {"requestBody": {"required": True, "description": description, "content": content}}
