"""What happens when a loss or gradient is not finite: a report, then stop or leave the step out.

The weights are never touched by such a step. The report names the step, its rows and its rate, so
that the cause can be looked for in the data.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from llm_trainer.config.training import TrainingConfig
from llm_trainer.exceptions import TrainingError
from llm_trainer.files import write_json

logger = logging.getLogger(__name__)

MAX_SKIPPED_STEPS = 10
"""Steps in a row that `nan_policy: skip` leaves out before it gives up."""


@dataclass(frozen=True)
class NonFinite:
    """A step whose loss or gradient norm is infinite or no number."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    rows: list[int]
    """Rows of the data set that went into it."""

    def handle(self, config: TrainingConfig, skipped: int) -> None:
        """Write the report; `skipped` steps in a row, this one included, were left out.

        Raises:
            TrainingError: under `nan_policy: stop`, or after too many in a row.
        """
        report = Path(config.checkpoint_dir) / f"non-finite-step-{self.step}.json"
        values = {"step": self.step, "rows": self.rows, "learning_rate": self.learning_rate}
        # JSON has no numbers for these
        texts = {"loss": repr(self.loss), "grad_norm": repr(self.grad_norm)}
        write_json(report, values | texts)
        message = (
            f"step {self.step}: loss {self.loss}, gradient norm {self.grad_norm}; rows and rate "
            f"are in {report}"
        )
        if config.nan_policy == "stop":
            raise TrainingError(
                f"{message}; the weights are those before the step. Lower learning_rate, or set "
                f"nan_policy: skip"
            )
        if skipped > MAX_SKIPPED_STEPS:
            raise TrainingError(f"{message}; {skipped} steps in a row were left out")
        logger.warning("%s; step left out", message)
