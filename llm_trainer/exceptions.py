"""Every error that a user can cause, and nothing else.

A message says what is wrong, the value, and what to do about it. An internal invariant is an
`assert` at the place where it is relied on, not a class here. Command-line entry points turn an
`LLMTrainerError` into one line on stderr and exit code 2; anything else keeps its traceback.
"""

from __future__ import annotations


class LLMTrainerError(Exception):
    """Base of all errors that the user of this library can cause and mend."""


class ConfigurationError(LLMTrainerError, ValueError):
    """A configuration file or object has an unknown key, a wrong type or an impossible value."""


class ModelConfigurationError(ConfigurationError, AssertionError):
    """A `ModelConfig` describes a model that cannot be built.

    It is an `AssertionError` too because the API promises one; it is raised explicitly, so it
    holds under `python -O`.
    """


class TokenizerError(LLMTrainerError, ValueError):
    """A tokenizer cannot be trained, loaded, or used on the given text."""


class TokenizerNotTrainedException(TokenizerError, RuntimeError):
    """A tokenizer was asked to encode, decode or save before it was trained or loaded."""


class DataError(LLMTrainerError, ValueError):
    """Raw text, a source of documents or packed data is missing, empty, malformed or too small."""


class IntegrityError(LLMTrainerError):
    """A file differs from what its manifest says: torn, damaged, swapped or not ours."""


class CheckpointError(LLMTrainerError):
    """A checkpoint cannot be written, read, or continued with the present configuration."""


class TrainingError(LLMTrainerError, RuntimeError):
    """Training cannot start or go on (no data, non-finite loss, no space to save, ...)."""


class GenerationError(LLMTrainerError, ValueError):
    """A generation request has an impossible parameter or prompt."""


class ExportError(LLMTrainerError):
    """A model in the format of another library does not compute what ours does."""


class LockHeldError(LLMTrainerError):
    """Another process already works in a directory that only one may write."""


class MissingDependencyError(LLMTrainerError, ImportError):
    """An optional package is needed for what was asked; the message names the extra."""


class TrackingError(LLMTrainerError):
    """A tracking server cannot be reached or refuses; the local record keeps everything."""
