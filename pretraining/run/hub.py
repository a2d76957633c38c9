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
    uploads a pickle. Only the first process needs this callback. An upload that fails only warns:
    the next checkpoint holds everything that it would have brought.

    Args:
        api: the Hub.
        repo_id: repository on it, with its owner.
        stage: named in the commit messages.
    """

    def __init__(self, api: HfApi, repo_id: str, stage: int):
        self.api = api
        self.repo_id = repo_id
        self.stage = stage

    def on_save(self, args, state, control, **kwargs):
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.upload(checkpoint, f"stage {self.stage}, step {state.global_step}")

    def upload(self, folder: Path, message: str) -> bool:
        """Uploads a folder as one commit.

        Returns:
            Whether it worked; if not, the log says why.
        """
        try:
            self.api.upload_folder(
                repo_id=self.repo_id,
                folder_path=folder,
                commit_message=message,
                ignore_patterns=NOT_FOR_THE_HUB,
            )
        except Exception as error:  # those of a connection are no OSError
            logger.warning("%s could not be uploaded, the run goes on: %s", folder, error)
            return False
        return True


def open_hub(repo_id: str | None, settings: StageSettings) -> HubPush | None:
    """What uploads a stage to a repository, which is made now if there is none.

    None where there is nothing to upload to, and in all processes but the first.

    Raises:
        OSError: if the repository cannot be made or written to.
    """
    if repo_id is None or settings.arguments.process_index != 0:
        return None
    api = HfApi(token=settings.arguments.hub_token)
    private = settings.arguments.hub_private_repo
    try:
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        api.auth_check(made.repo_id, write=True)  # of one that exists, the call before says nothing
    except Exception as error:  # those of a connection are no OSError
        raise OSError(f"--push_to_hub {repo_id}: {error}") from error
    return HubPush(api, made.repo_id, settings.number)  # with its owner, who may be left out
