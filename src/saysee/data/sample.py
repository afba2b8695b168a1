"""The sample corpus of the package: 184 drawings of words, each spoken in English, Spanish and French (Art4Apps)."""

from pathlib import Path

import saysee

# Ids of three test recordings, one in each language, that `saysee demo` asks. They were chosen by hand, not at random,
# among the test recordings of well-known things, for words that sound alike in another of the three languages (rice:
# riz, arroz; lámpara: lamp, lampe; chocolat: chocolate), so that they have a fair chance: in training the model hears
# each of these drawings named only in the other two languages. How it does on all test recordings, the recall table
# says and these three do not.
DEMO_QUESTIONS: tuple[str, str, str] = (
    "audio/en-art4apps/rice",
    "audio/es-art4apps/lamp",
    "audio/fr-art4apps/chocolate",
)


def sample_manifest_path() -> Path:
    """Return the path of the sample corpus's manifest, in the installed package."""
    return Path(saysee.__file__).parent / "assets" / "art4apps" / "manifest.jsonl"
