"""The ablation: a recipe with its parts switched; how its runs become a table, `runs` says.

The rows differ in `LossConfig` alone, and there in the switches of `ROWS`: optimiser, steps, temperature and the rule
for captions of one image are the recipe's own in all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from saysee.config import Config
from saysee.errors import SayseeError

BASELINE = "contrast"
ROWS: Mapping[str, Mapping[str, object]] = {
    "contrast": {"queue_size": 0, "image_negatives_from": "batch", "distillation_alpha": 0.0, "matching": False},
    "queue": {"distillation_alpha": 0.0, "matching": False},
    "distillation": {"queue_size": 0, "image_negatives_from": "batch", "matching": False},
    "matching-random": {
        "queue_size": 0,
        "image_negatives_from": "batch",
        "distillation_alpha": 0.0,
        "matching_loss": "binary",
        "negatives": "random",
    },
    "matching-hard": {
        "queue_size": 0,
        "image_negatives_from": "batch",
        "distillation_alpha": 0.0,
        "matching_loss": "binary",
    },
    "all": {},
}
"""The switch matrix: by row, what of the recipe's `LossConfig` is changed. The choice of rows is ours.

Each part is added to `contrast` by itself; hard negatives stand in the place of random ones. Without a queue, negative
images can come from the batch alone.
"""


def require_rows(rows: Sequence[str] | None) -> list[str]:
    """Return the rows that are asked for, each once and in the order of ROWS; None asks for all.

    Raises:
        SayseeError: there is no such row.
    """
    for row in rows or ():
        if row not in ROWS:
            raise SayseeError(f"there is no row {row!r} in the ablation; choose of: {', '.join(ROWS)}")
    return [row for row in ROWS if not rows or row in rows]


def config_of(config: Config, row: str, seed: int) -> Config:
    """Return the recipe with the row's parts switched and another seed; all else is the recipe's own.

    Raises:
        SayseeError: the recipe lacks a part that is to be switched, or chooses its model by the fine stage, which some
            rows do not have.
    """
    loss = config.loss
    for there, key, value, wanted in (
        (loss.queue_size > 0, "queue_size", loss.queue_size, "more than 0"),
        (loss.distillation_alpha > 0, "distillation_alpha", loss.distillation_alpha, "more than 0"),
        (loss.matching, "matching", loss.matching, "true"),
        (loss.negatives == "hard", "negatives", loss.negatives, "hard"),
    ):
        if not there:
            raise SayseeError(
                f"loss.{key} is {value}; an ablation starts from a recipe with all parts, so give {wanted}: the rows "
                "switch them off"
            )
    if config.training.primary_metric.startswith("fine/"):
        raise SayseeError(
            f"training.primary_metric is {config.training.primary_metric!r}, and rows without matching have no fine "
            "stage; choose all rows' models by one metric of the coarse stage, such as coarse/mean/R@1"
        )
    switches: Any = ROWS[row]
    return replace(config, loss=replace(loss, **switches), training=replace(config.training, seed=seed))
