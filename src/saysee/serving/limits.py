"""What the server gives to a client, to all of them together, and to the model. All values are ours."""

from dataclasses import dataclass

from saysee.features.audio import AudioLimits
from saysee.features.image import ImageLimits


@dataclass(frozen=True)
class ServingLimits:
    """Limits of one server; each is answered with the status that is named.

    Attributes:
        body_bytes: size of a body: 413. A minute of 16-bit stereo at 48 kHz has 11.5 MB.
        held_bytes: all bodies that are here and what they were decoded to, together: 503. While it decodes, a decoder
            needs room for one question besides.
        seconds: duration of a recording: 422. Shortest and sampling rates are those of `AudioLimits`.
        pixels: width times height of a picture: 422.
        body_seconds: from the head of a request to the end of its body: 408.
        header_seconds: from the first byte of a request (or the connection) to the end of its head: 408.
        idle_seconds: between two requests of a connection; then it is closed.
        write_seconds: for which a client may take nothing of an answer; then it is cut off.
        answer_seconds: from the end of the body to the first byte of the answer: 503.
        linger_seconds: for which the rest of a body that was refused is read and dropped, so that the client sees the
            refusal and not a broken connection.
        connections: open at a time: 503.
        questions: being decoded, waiting for the model and with the model, together: 503.
        batch: questions that the model encodes together.
        decoders: threads that decode.
        rate: requests a second of one client, over a longer time: 429.
        burst: requests of one client that may come at once: 429.
        question_cost: what needs decoding or the model counts as so many requests.
        clients: addresses whose requests are counted; of more, those not heard for longest are forgotten.
        picture_side: longest side in pixels of a picture that is shown.
        refresh_seconds: between two looks at what another process has written to the index.
        drain_seconds: that requests which are here have to end, when the server is told to.
    """

    body_bytes: int = 16 * 1024 * 1024
    held_bytes: int = 256 * 1024 * 1024
    seconds: float = 60.0
    pixels: int = 50_000_000
    body_seconds: float = 20.0
    header_seconds: float = 10.0
    idle_seconds: int = 15
    write_seconds: float = 20.0
    answer_seconds: float = 30.0
    linger_seconds: float = 2.0
    connections: int = 256
    questions: int = 32
    batch: int = 8
    decoders: int = 2
    rate: float = 50.0
    burst: int = 200
    question_cost: int = 10
    clients: int = 4096
    picture_side: int = 1600
    refresh_seconds: float = 1.0
    drain_seconds: int = 10

    @property
    def audio(self) -> AudioLimits:
        """What a recording may be."""
        return AudioLimits(max_bytes=self.body_bytes, max_seconds=self.seconds)

    @property
    def image(self) -> ImageLimits:
        """What a picture that is a question may be."""
        return ImageLimits(max_bytes=self.body_bytes, max_pixels=self.pixels)
