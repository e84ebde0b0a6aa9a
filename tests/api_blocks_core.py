"""Configurations, model, tokenizer, trainer, generation, data: see `api_blocks`."""

from __future__ import annotations

from tests.api_block import Block

CORE = [
    Block(
        "ModelConfig",
        """
from llm_trainer.config import ModelConfig

config = ModelConfig(
    vocab_size=50000,
    d_model=768,
    n_heads=12,
    n_layers=12,
    d_ff=3072,
    max_seq_len=1024,
    dropout=0.1,
    attention_dropout=0.1,
    activation="gelu",
    pre_norm=True,
    use_learned_pos_emb=False,
    gradient_checkpointing=False
)
""",
        check="assert config == ModelConfig() and config.d_head == 64",
    ),
    Block(
        "TrainingConfig",
        """
from llm_trainer.config import TrainingConfig

config = TrainingConfig(
    batch_size=32,
    learning_rate=1e-4,
    weight_decay=0.01,
    num_epochs=10,
    max_steps=None,
    lr_scheduler="cosine",
    warmup_steps=1000,
    warmup_ratio=0.1,
    min_lr_ratio=0.1,
    optimizer="adamw",
    max_grad_norm=1.0,
    gradient_accumulation_steps=1,
    use_amp=True,
    amp_dtype="float16",
    save_steps=1000,
    checkpoint_dir="./checkpoints",
    eval_steps=500,
    eval_strategy="steps",
    logging_steps=100,
    report_to=["tensorboard"],
    world_size=1,
    local_rank=-1,
)
""",
        check="assert config == TrainingConfig() and config.effective_batch_size == 32",
    ),
    Block(
        "DataConfig",
        """
from llm_trainer.config import DataConfig

config = DataConfig(
    dataset_name="wikitext",
    dataset_config="wikitext-103-raw-v1",
    dataset_split="train",
    validation_split="validation",
    text_column="text",
    max_length=1024,
    min_length=10,
    vocab_size=50000,
    pack_sequences=True,
    preprocessing_num_workers=4,
    dataloader_num_workers=4,
    train_file=None,
    validation_file=None,
)
""",
        check="assert config == DataConfig()",
    ),
    Block(
        "TransformerLM",
        """
from llm_trainer.models import TransformerLM
from llm_trainer.config import ModelConfig

config = ModelConfig(vocab_size=2000, d_model=48, n_heads=12, n_layers=2)
model = TransformerLM(config)

print(f"Parameters: {model.get_num_params():,}")
print(f"Model size: {model.get_model_size_mb():.1f} MB")
""",
    ),
    Block(
        "BPETokenizer",
        """
from llm_trainer.tokenizer import BPETokenizer

tokenizer = BPETokenizer()
tokenizer.train_from_dataset(
    dataset_name="wikitext",
    dataset_config="wikitext-2-raw-v1",
    vocab_size=500
)

token_ids = tokenizer.encode("Hello world!")
text = tokenizer.decode(token_ids)
""",
        check="""
assert text == "Hello world!"
assert 257 < tokenizer.vocab_size <= 500
assert token_ids[-1] == tokenizer.end_id
""",
    ),
    Block(
        "Trainer",
        """
from llm_trainer.training import Trainer
from llm_trainer.config import TrainingConfig

trainer = Trainer(
    model=model,
    tokenizer=tokenizer,
    config=training_config,
    train_dataset=train_dataset,
    eval_dataset=eval_dataset
)

trainer.train()
""",
        given="""
from llm_trainer.data import LanguageModelingDataset
texts = [f"document {n} of the texts, which has some words of its own: " + "word " * n
         for n in range(100)]
training_config = TrainingConfig(batch_size=4, max_steps=3, warmup_steps=1)
train_dataset = LanguageModelingDataset(texts, tokenizer, max_length=64)
eval_dataset = LanguageModelingDataset(texts[:9], tokenizer, max_length=64)
""",
        check="assert trainer.state.step == 3 and trainer.evaluate()['perplexity'] > 1",
    ),
    Block(
        "TextGenerator",
        """
from llm_trainer.utils.generation import TextGenerator, GenerationConfig

generator = TextGenerator(model, tokenizer, device)

config = GenerationConfig(
    max_length=100,
    temperature=0.8,
    top_k=50,
    top_p=0.9,
    do_sample=True,
    repetition_penalty=1.1
)

generated = generator.generate(
    prompt="The future of AI is",
    config=config
)
""",
        given="import torch\ndevice = torch.device('cpu')",
        check="assert generated.startswith('The future of AI is')",
    ),
    Block(
        "InferenceEngine",
        """
from llm_trainer.utils.inference import InferenceEngine

engine = InferenceEngine(model, tokenizer, device)

engine.optimize(
    enable_kv_cache=True,
    compile_model=True,
    quantize=False
)

result = engine.infer(
    prompt="Hello world",
    max_length=50
)
""",
        check="assert result.startswith('Hello world')",
    ),
    Block(
        "LanguageModelingDataset",
        """
from llm_trainer.data import LanguageModelingDataset

dataset = LanguageModelingDataset(
    texts=texts,
    tokenizer=tokenizer,
    max_length=64,
    pack_sequences=True
)

from torch.utils.data import DataLoader
dataloader = DataLoader(dataset, batch_size=32, shuffle=True)
""",
        check="""
batch = next(iter(dataloader))
assert batch["input_ids"].shape == (32, 64)
assert dataset.get_stats()["num_rows"] == len(dataset) >= 64
""",
    ),
    Block(
        "create_dataloader",
        """
from llm_trainer.data import create_dataloader

dataloader = create_dataloader(
    dataset=dataset,
    batch_size=32,
    shuffle=True,
    num_workers=4,
    pin_memory=True,
    drop_last=True
)
""",
        check="assert len(dataloader) == len(dataset) // 32",
    ),
]  # fmt: skip
