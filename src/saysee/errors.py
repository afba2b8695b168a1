"""The one error a user can cause. Everything else that is raised is a fault of ours."""


class SayseeError(Exception):
    """A mistake in what the user gave: the message says what was received, what is allowed and what to do.

    The command line prints the message as one line and exits with status 2; a library user may catch it.
    """


class AudioError(SayseeError):
    """A recording that cannot or must not be decoded."""


class ImageError(SayseeError):
    """A picture that cannot or must not be decoded."""
