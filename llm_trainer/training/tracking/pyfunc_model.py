"""The MLflow model, as code: prompts in, continued text out. Saved as text beside the weights.

    model = mlflow.pyfunc.load_model("runs:/<run id>/model")
    model.predict([{"prompt": "def __init__(self"}], params={"max_new_tokens": 64, "seed": 1})

Temperature 0 is greedy; top_k 0 and top_p 1.0 switch these filters off. Each prompt is continued
on its own, so the same seed gives the same text in whatever company.
"""

from pathlib import Path
from typing import Any

import mlflow
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class TextModel(PythonModel):
    """A causal language model with its tokenizer."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load weights and tokenizer from the model's files; both are checked by digest."""
        from llm_trainer.models import TransformerLM
        from llm_trainer.tokenizer import BPETokenizer

        directory = Path(context.artifacts["model"])
        self.model = TransformerLM.from_pretrained(directory)
        self.tokenizer = BPETokenizer.from_pretrained(directory / "tokenizer")

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ARG002
        """One text for each row's `prompt`, the prompt included."""
        # no type hints on purpose: mlflow would take them for the schema of the input
        from llm_trainer.config.generation import GenerationConfig

        values: dict[str, Any] = dict(params or {})
        config = GenerationConfig(
            max_new_tokens=int(values.get("max_new_tokens", 48)),
            temperature=float(values.get("temperature", 0.8)),
            top_k=int(values.get("top_k", 50)) or None,
            top_p=float(values.get("top_p", 0.95)),
            seed=int(values.get("seed", 0)),
            end_id=self.tokenizer.end_id,
            pad_id=self.tokenizer.pad_id,
        )
        return [self._continue(str(prompt), config) for prompt in model_input["prompt"]]

    def _continue(self, prompt: str, config: Any) -> str:
        import torch

        from llm_trainer.models.decoding import continue_prompts

        # an empty prompt begins a document, as a document does in training: with the end token
        ids = self.tokenizer.encode(prompt, add_special_tokens=False) or [self.tokenizer.end_id]
        new = continue_prompts(self.model, torch.tensor([ids]), None, config)
        return prompt + self.tokenizer.decode(new.ids[0, : new.lengths[0]].tolist())


mlflow.models.set_model(TextModel())
