#!/usr/bin/env python3
"""Train on custom dataset: the files data1.txt and data2.txt in the current directory."""

from llm_trainer.config import ModelConfig, TrainingConfig
from llm_trainer.data import LanguageModelingDataset, create_dataloader
from llm_trainer.models import TransformerLM
from llm_trainer.tokenizer import BPETokenizer
from llm_trainer.training import Trainer


def train_on_custom_data():
    # Load custom texts
    texts = []
    for file_path in ["data1.txt", "data2.txt"]:
        with open(file_path, encoding="utf-8") as f:
            texts.append(f.read())

    # Train tokenizer
    tokenizer = BPETokenizer()
    tokenizer.train(texts, vocab_size=32000)

    # Create dataset
    dataset = LanguageModelingDataset(
        texts=texts,
        tokenizer=tokenizer,
        max_length=512,
    )

    # Create dataloader
    dataloader = create_dataloader(
        dataset=dataset,
        batch_size=32,
        shuffle=True,
    )

    # Continue with training: either a loop of your own over the dataloader ...
    model_config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        d_model=256,
        n_heads=4,
        n_layers=4,
        d_ff=1024,
        max_seq_len=512,
    )
    model = TransformerLM(model_config)
    batch = next(iter(dataloader))
    print(f"loss before training: {model(**batch).loss.item():.3f}")

    # ... or the trainer, which needs only the dataset
    trainer = Trainer(model, tokenizer, TrainingConfig(num_epochs=1), train_dataset=dataset)
    result = trainer.train()
    print(f"loss after {result.steps} steps: {result.final_loss:.3f}")
    trainer.save_model("./final_model")


if __name__ == "__main__":
    train_on_custom_data()
