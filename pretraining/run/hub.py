"""Uploads checkpoints and finished models to the Hub."""

import logging
from pathlib import Path

from huggingface_hub import HfApi
from transformers import TrainerCallback

from pretraining.run.settings import StageSettings

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


class HubPush(TrainerCallback):
    """Uploads each checkpoint with its code and tokenizer as one commit.

    Trainer's own `hub_strategy="every_save"` leaves the remote code out of its checkpoints and
    uploads a pickle. Only the first process needs this callback. An upload that fails in
    mid-training only warns: the next checkpoint holds everything that it would have brought.

    Args:
        repo_id: repository on the Hub, with its owner.
        stage: named in the commit messages.
    """

    def __init__(self, repo_id: str, stage: int):
        self.api = HfApi()
        self.repo_id = repo_id
        self.stage = stage

    def on_save(self, args, state, control, **kwargs):
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        try:
            self.upload(checkpoint, f"stage {self.stage}, step {state.global_step}")
        except OSError as error:
            logger.warning("%s could not be uploaded, training goes on: %s", checkpoint, error)

    def upload(self, folder: Path, message: str) -> None:
        """Uploads a folder as one commit.

        Raises:
            OSError: if it fails.
        """
        self.api.upload_folder(
            repo_id=self.repo_id,
            folder_path=folder,
            commit_message=message,
            ignore_patterns=NOT_FOR_THE_HUB,
        )


def open_hub(repo_id: str | None, settings: StageSettings) -> HubPush | None:
    """What uploads a stage to a repository, which is made now if there is none.

    None where there is nothing to upload to, and in all processes but the first.

    Raises:
        OSError: if the repository cannot be made or written to.
    """
    if repo_id is None or settings.arguments.process_index != 0:
        return None
    made = HfApi().create_repo(repo_id, exist_ok=True)
    return HubPush(made.repo_id, settings.number)  # with its owner, who may be left out
