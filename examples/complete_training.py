#!/usr/bin/env python3
"""Complete training example with all components."""

from llm_trainer.config import DataConfig, ModelConfig, TrainingConfig
from llm_trainer.models import TransformerLM
from llm_trainer.tokenizer import BPETokenizer
from llm_trainer.training import Trainer


def main():
    # Configuration
    model_config = ModelConfig(
        vocab_size=32000,
        d_model=512,
        n_heads=8,
        n_layers=6,
        max_seq_len=1024,
    )

    training_config = TrainingConfig(
        batch_size=16,
        learning_rate=1e-4,
        num_epochs=3,
        warmup_steps=1000,
        use_amp=True,
        checkpoint_dir="./checkpoints",
    )

    data_config = DataConfig(
        dataset_name="wikitext",
        dataset_config="wikitext-2-raw-v1",
        max_length=1024,
        vocab_size=32000,
    )

    # Create tokenizer
    tokenizer = BPETokenizer()
    tokenizer.train_from_dataset(
        dataset_name=data_config.dataset_name,
        dataset_config=data_config.dataset_config,
        vocab_size=data_config.vocab_size,
    )

    # Update model config
    model_config.vocab_size = tokenizer.vocab_size

    # Create model
    model = TransformerLM(model_config)

    # Create trainer
    trainer = Trainer(model, tokenizer, training_config)

    # Train
    trainer.train_from_config(model_config, data_config)

    # Save
    trainer.save_model("./final_model")


if __name__ == "__main__":
    main()
