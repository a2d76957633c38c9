"""Model folders that are ready for the Hub, and their upload."""

import json
import logging
import os
import shutil
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError
from transformers import TrainerCallback

logger = logging.getLogger(__name__)

# Needed to resume a run, but not to use a model; training_args.bin is a pickle.
NOT_FOR_THE_HUB = [
    "training_args.bin",
    "pytorch_model_fsdp.bin",
    "optimizer.*",
    "scheduler.*",
    "scaler.*",
    "rng_state*",
    "trainer_state.json",
]

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
    (temporary / "training_log.json").write_text(
        json.dumps(history, indent=1, ensure_ascii=False), encoding="utf-8"
    )
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
    data = ModelCardData(
        language="zh", license="apache-2.0", library_name="transformers", pipeline_tag="fill-mask"
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n{text}").save(temporary / "README.md")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(temporary, folder)


class HubPush(TrainerCallback):
    """Uploads each checkpoint, whole with its code and tokenizer, as one commit.

    Trainer's own `hub_strategy="every_save"` leaves the remote code out of its checkpoints and
    uploads a pickle. Only the first process has this callback. An upload that fails in
    mid-training is only warned of: the next checkpoint holds all it would have brought.

    Args:
        repo_id: repository on the Hub; it is made if there is none.
        stage: named in the commit messages.

    Raises:
        HfHubHTTPError, OSError: if the repository cannot be made or written to.
    """

    def __init__(self, repo_id: str, stage: int):
        self.api = HfApi()
        self.repo_id = self.api.create_repo(repo_id, exist_ok=True).repo_id
        self.stage = stage

    def on_save(self, args, state, control, **kwargs):
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        try:
            self.upload(checkpoint, f"stage {self.stage}, step {state.global_step}")
        except (OSError, HfHubHTTPError) as error:
            logger.warning("%s could not be uploaded, training goes on: %s", checkpoint, error)

    def upload(self, folder: Path, message: str) -> None:
        """Uploads a folder as one commit.

        Raises:
            HfHubHTTPError, OSError: if it fails.
        """
        self.api.upload_folder(
            repo_id=self.repo_id,
            folder_path=folder,
            commit_message=message,
            ignore_patterns=NOT_FOR_THE_HUB,
        )
