"""All entries, and what needs none: why each of those cannot be misused by its caller."""

from __future__ import annotations

from tests.errors import configs, models, texts, tools, training
from tests.errors.nonsense import Entry

ENTRIES: list[Entry] = [
    *configs.ENTRIES, *models.ENTRIES, *texts.ENTRIES, *training.ENTRIES, *tools.ENTRIES,
]  # fmt: skip

RESULT = "a result: the library makes it, users read it"
STEP = "a step of the loops: its callers, which are in the table, have checked what they hand on"
BOOKS = "the books of a stage: a wrong entry is a bug, which `check` finds"
INSIDE = "for the modules of the library: users have no reason to call it"

EXEMPT: dict[str, str] = {
    # module, class or function -> why it has no row
    "llm_trainer.config.experiment:Experiment": "load_experiment makes it, checked",
    "llm_trainer.data.documents:Document": RESULT,
    "llm_trainer.data.ledger:Ledger": BOOKS,
    "llm_trainer.data.order:permute": STEP,
    "llm_trainer.exceptions": "kinds of errors",
    "llm_trainer.export": "tests/export gives its functions and its command nonsense",
    "llm_trainer.files": INSIDE,
    "llm_trainer.locks": INSIDE,
    "llm_trainer.manifests": INSIDE,
    "llm_trainer.models.cache:KVCache.write": STEP,
    "llm_trainer.models.cache:KVCache.advance": STEP,
    "llm_trainer.models.cache:KVCache.reorder": STEP,
    "llm_trainer.models.sampling:UniformStreams": STEP,
    "llm_trainer.models.sampling:check_logits": STEP,
    "llm_trainer.models.sampling:logits_problems": STEP,
    "llm_trainer.models.sampling:draw": STEP,
    "llm_trainer.models.sampling:filter_logits": STEP,
    "llm_trainer.models.sampling:penalize": STEP,
    "llm_trainer.models.sampling:row_seed": STEP,
    "llm_trainer.models.sampling:seen_tokens": STEP,
    "llm_trainer.models.transformer:LMOutput": RESULT,
    "llm_trainer.models.transformer:TransformerLM.hidden_states": STEP,
    "llm_trainer.models.transformer:TransformerLM.loss_sum": STEP,
    "llm_trainer.models.transformer:TransformerLM.token_losses": STEP,
    "llm_trainer.training.result:TrainingResult": RESULT,
    "llm_trainer.utils.evaluation:Evaluation": RESULT,
    "llm_trainer.utils.generation:Completion": RESULT,
    "llm_trainer.utils.leakage:LeakReport": RESULT,
    "llm_trainer.utils.machine": INSIDE,
    "llm_trainer.utils.memory:MemoryPlan": RESULT,
    "llm_trainer.utils.parameters:ParameterCount": RESULT,
    "llm_trainer.utils.planning:Actuals": "plain numbers to show beside a plan",
    "llm_trainer.utils.planning:Plan": RESULT + "; its methods are in the table",
}
