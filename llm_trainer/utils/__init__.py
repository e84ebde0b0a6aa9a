"""Generation, inference, metrics, evaluation, planning: tools around a model and its data."""
