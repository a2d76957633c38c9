"""The folder of a finished stage: a model repository, with its card and the log of its steps."""

import os
import shutil
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from pretraining.files import write_json

TRAINING_LOG = "training_log.json"

_CARD_TEXT = """
# Chinese ModernBERT: {name}

A Chinese ModernBERT encoder, stopped after pretraining stage {stage}: {layers} layers × {hidden},
{parameters:.1f} M parameters, contexts of up to {context} tokens.

```python
from transformers import pipeline

fill_mask = pipeline("fill-mask", model="{name}", trust_remote_code=True)
fill_mask("今天的天气真[MASK]。")
```

It was trained on {documents:,} documents ({characters:,} characters) in rows of {sequence_length}
tokens, for {steps} steps and {tokens:,} tokens. On held-out text, with 15 % of the tokens masked:

| measure | value |
|---|---|
{table}

Loss, learning rate and mask rate of the run are in `training_log.json`.
"""


def save_model_folder(trainer, folder: Path, name: str, stage: int, rows) -> None:
    """Writes weights, configuration, remote code, tokenizer, card and log of a finished stage.

    The folder appears under its name only once it is complete. Every process has to call this: a
    model that is divided among them is put together first.

    Args:
        trainer: the Trainer that has finished.
        folder: where to.
        name: what the card calls the model, and loads it by.
        stage: 1 or 2.
        rows: the row set it was trained on.
    """
    temporary = folder.with_name(f"{folder.name}.incomplete")
    if trainer.is_world_process_zero():
        shutil.rmtree(temporary, ignore_errors=True)
    trainer.save_model(str(temporary))
    if not trainer.is_world_process_zero():
        return
    (temporary / "training_args.bin").unlink()
    model = trainer.accelerator.unwrap_model(trainer.model)
    history = trainer.state.log_history
    write_json(temporary / TRAINING_LOG, history)
    evaluation = next((entry for entry in reversed(history) if "eval_loss" in entry), {})
    measures = {
        "masked accuracy": evaluation.get("eval_masked_accuracy"),
        "accuracy of always naming the commonest token": evaluation.get("eval_most_frequent_rate"),
        "bits per character": evaluation.get("eval_bits_per_character"),
    }
    lines = [f"| {name} | {value:.4f} |" for name, value in measures.items() if value is not None]
    text = _CARD_TEXT.format(
        name=name,
        stage=stage,
        layers=model.config.num_hidden_layers,
        hidden=model.config.hidden_size,
        parameters=model.num_parameters() / 1e6,
        context=model.config.max_position_embeddings,
        sequence_length=rows.seq_len,
        documents=rows.manifest["documents"],
        characters=rows.manifest["characters"],
        steps=trainer.state.global_step,
        tokens=trainer.state.num_input_tokens_seen,
        table="\n".join(lines) or "| not evaluated | |",
    )
    # No license: which one it may have depends on the text.
    data = ModelCardData(language="zh", library_name="transformers", pipeline_tag="fill-mask")
    ModelCard(f"---\n{data.to_yaml()}\n---\n{text}").save(temporary / "README.md")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(temporary, folder)
