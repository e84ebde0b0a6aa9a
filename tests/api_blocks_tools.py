"""Metrics, optimizers, utilities, errors, whole programs: see `api_blocks`."""

from __future__ import annotations

from tests.api_block import Block, example

TOOLS = [
    Block(
        "metrics",
        """
from llm_trainer.utils.metrics import (
    compute_perplexity,
    compute_bleu_score,
    compute_diversity_metrics,
    compute_repetition_metrics,
    evaluate_generation_quality
)

perplexity = compute_perplexity(model, dataloader, device)

quality_metrics = evaluate_generation_quality(
    generated_texts=generated_texts,
    reference_texts=reference_texts
)

diversity = compute_diversity_metrics(generated_texts)
""",
        given="""
generated_texts = ["the cat sat on the mat", "a dog ran"]
reference_texts = ["the cat sat on a mat", "a dog ran away"]
""",
        check="""
assert 1 < perplexity < 2000
assert 0 < diversity["distinct_1"] <= 1 and 0 < diversity["distinct_2"] <= 1
assert quality_metrics.items() >= diversity.items()
assert compute_repetition_metrics(generated_texts)
assert compute_bleu_score(reference_texts, reference_texts) > 0.99
""",
    ),
    Block(
        "create_optimizer",
        """
from llm_trainer.training.optimizer import create_optimizer

optimizer = create_optimizer(
    model=model,
    optimizer_type="adamw",
    learning_rate=1e-4,
    weight_decay=0.01,
    betas=(0.9, 0.999),
    eps=1e-8
)
""",
        check="assert {group['lr'] for group in optimizer.param_groups} == {1e-4}",
    ),
    Block(
        "create_scheduler",
        """
from llm_trainer.training.scheduler import create_scheduler

scheduler = create_scheduler(
    optimizer=optimizer,
    scheduler_type="cosine",
    num_training_steps=total_steps,
    warmup_steps=warmup_steps,
    min_lr_ratio=0.1
)
""",
        given="total_steps, warmup_steps = 10, 2",
        check="""
for _ in range(total_steps):
    optimizer.step()
    scheduler.step()
assert abs(scheduler.get_last_lr()[0] - 1e-5) < 1e-9
""",
    ),
    Block(
        "training utilities",
        """
from llm_trainer.training.utils import (
    set_seed,
    get_device,
    setup_logging,
    save_checkpoint,
    load_checkpoint,
    get_memory_usage
)

set_seed(42)

device = get_device()

setup_logging(level="info")

memory_usage = get_memory_usage()
""",
        check="""
path = save_checkpoint(model, optimizer, 7, "./kept")
assert load_checkpoint(path, model, optimizer) == 7
assert memory_usage["process_mb"] > 0
""",
    ),
    Block(
        "generation utilities",
        """
from llm_trainer.utils.generation import (
    sample_top_k,
    sample_top_p,
    apply_repetition_penalty,
    create_causal_mask
)

logits = sample_top_k(logits, k=50)
logits = sample_top_p(logits, p=0.9)
logits = apply_repetition_penalty(logits, input_ids, penalty=1.1)
""",
        given="""
input_ids = torch.tensor([tokenizer.encode("some words", add_special_tokens=False)])
logits = model.cpu()(input_ids).logits[:, -1].detach()
""",
        check="""
assert 1 <= int(logits.isfinite().sum()) <= 50
assert create_causal_mask(3).tolist() == [[True, False, False], [True, True, False], [True] * 3]
""",
    ),
    Block(
        "exceptions",
        """
from llm_trainer.exceptions import (
    TokenizerNotTrainedException,
    ModelConfigurationError,
    TrainingError,
    GenerationError
)

try:
    trainer.train()
except TrainingError as e:
    print(f"Training failed: {e}")
except ModelConfigurationError as e:
    print(f"Model configuration error: {e}")
""",
        check="""
def raised(error, action):
    try:
        action()
    except error:
        return True
assert raised(TokenizerNotTrainedException, lambda: BPETokenizer().encode("text"))
assert raised(GenerationError, lambda: engine.infer("text", top_p=2.0))
""",
    ),
    Block(
        "validation",
        """
config = ModelConfig(
    d_model=768,
    n_heads=5
)
""",
        raises="AssertionError",
    ),
    Block(
        "memory",
        """
def estimate_memory_usage(config):
    params = calculate_parameters(config)
    model_memory = params * 4
    gradient_memory = params * 4
    optimizer_memory = params * 8
    total_gb = (model_memory + gradient_memory + optimizer_memory) / (1024**3)
    return total_gb
""",
        given="from llm_trainer.utils.planning import calculate_parameters",
        check="""
from llm_trainer.utils import planning
assert estimate_memory_usage(ModelConfig()) == planning.estimate_memory_usage(ModelConfig())
""",
    ),
    Block(
        "speed",
        """
training_config = TrainingConfig(
    use_amp=True,
    compile_model=True,
    dataloader_num_workers=8,
    gradient_accumulation_steps=4,
)
""",
        check="assert training_config.effective_batch_size == 128",
    ),
    Block(
        "complete training",
        example(
            "complete_training.py",
            vocab_size="400", d_model="32", n_heads="2", n_layers="2", max_seq_len="64",
            max_length="64", num_epochs="1",
        ),
        given="import shutil\nshutil.rmtree('checkpoints')",
        check="assert TransformerLM.from_pretrained('final_model').config.vocab_size <= 400",
    ),
    Block(
        "custom dataset",
        example("custom_dataset.py", d_model="32", n_heads="2", n_layers="2", d_ff="64"),
        given="""
for name in ("data1.txt", "data2.txt"):
    Path(name).write_text(" ".join(texts) * 3, encoding="utf-8")
shutil.rmtree("checkpoints")
shutil.rmtree("final_model")
""",
        check="assert TransformerLM.from_pretrained('final_model').config.max_seq_len == 512",
    ),
]  # fmt: skip
