"""The sample corpus of the package: 184 drawings of words, each spoken in English, Spanish and French (Art4Apps)."""

from pathlib import Path

import saysee

# Ids of three test recordings, one in each language, that `saysee demo` asks. They were chosen by hand after looking,
# as examples of what the recipe `tiny` did well then: a sheet of misses would not show what an answer looks like. In
# training the model hears each of these drawings named only in another language or two. How it does on all test
# recordings, which is far worse, the recall table says and these three do not.
DEMO_QUESTIONS: tuple[str, str, str] = (
    "audio/en-art4apps/back",
    "audio/es-art4apps/boat",
    "audio/fr-art4apps/dad",
)


def sample_manifest_path() -> Path:
    """Return the path of the sample corpus's manifest, in the installed package."""
    return Path(saysee.__file__).parent / "assets" / "art4apps" / "manifest.jsonl"
