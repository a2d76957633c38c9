"""transformers' Trainer for a stage: data, schedules and callbacks, as the settings have it."""

from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback

from backends_chinese_modernbert import choose_attention
from modeling_chinese_modernbert import ChineseModernBertForMaskedLM
from pretraining.data.tokens import token_lengths
from pretraining.run.evaluation import (
    EvaluationRows,
    MaskedLanguageModelingMetrics,
    TrainOrEvaluationCollator,
    evaluation_collator,
    reduce_logits,
)
from pretraining.run.guard import Guard
from pretraining.run.log import LOG_FILE, JsonLinesLog, TrainingLog
from pretraining.run.muon import MuonAndAdamW, muon_groups
from pretraining.run.progress import ProgressReport
from pretraining.run.settings import StageSettings
from pretraining.run.sharding import SavedLikeAny, check_sharding
from pretraining.run.stage_data import StageData


def make_model(settings: StageSettings) -> ChineseModernBertForMaskedLM:
    """The model that a stage starts from; fresh weights follow torch's random state."""
    if settings.source is None:
        model = ChineseModernBertForMaskedLM(settings.config)
    else:
        # Without it, weights that a folder stores in bf16 would be trained in bf16.
        model = ChineseModernBertForMaskedLM.from_pretrained(settings.source, dtype=torch.float32)
    if model.config.tie_word_embeddings:
        # FSDP2 would write the weights that embeddings and head share twice, and a run that resumes
        # would warn that one of their names is missing.
        model._keys_to_ignore_on_save = set(model._tied_weights_keys)
    return model


def make_trainer(
    settings: StageSettings,
    data: StageData,
    model: ChineseModernBertForMaskedLM,
    callbacks: list[TrainerCallback],
) -> Trainer:
    """A Trainer that is ready to train the stage; it makes the folder `arguments.output_dir`.

    Args:
        callbacks: further ones, after those of every run.

    Raises:
        RunConfigError: on a launcher's settings with which checkpoints would not open as models.
    """
    evaluation = {}
    if (held_out := data.eval_rows) is not None:
        lengths = token_lengths(settings.tokenizer.backend_tokenizer)
        evaluation = {
            "eval_dataset": EvaluationRows(held_out),
            "compute_metrics": MaskedLanguageModelingMetrics(lengths, held_out),
            "preprocess_logits_for_metrics": reduce_logits,
        }
    trainer = Trainer(
        model=model,
        args=settings.arguments,
        train_dataset=data.order,
        data_collator=TrainOrEvaluationCollator(
            train=data.collator,
            evaluation=None if held_out is None else evaluation_collator(held_out),
        ),
        processing_class=settings.tokenizer,
        callbacks=[
            StepsAsSet(),
            SavedLikeAny(),
            Guard(settings.folder, data.order.positions),
            JsonLinesLog(settings.folder / LOG_FILE),
            *callbacks,
        ],
        **evaluation,
    )
    # First of all, because trackers write down what it adds.
    log = TrainingLog(settings.mask_rate, data.order, settings.config)
    trainer.callback_handler.callbacks.insert(0, log)
    ProgressReport.add_to(trainer)
    check_sharding(trainer)
    optimizer = _optimizer(settings, trainer)
    peak = settings.stage.learning_rate.peak
    trainer.lr_scheduler = Schedule(optimizer, lambda step: settings.learning_rate(step) / peak)
    return trainer


class StepsAsSet(TrainerCallback):
    """Logs, evaluates and saves as often as the run file says, where Trainer takes a checkpoint's.

    Of a run that is resumed; a new one does so anyway.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        state.compute_steps(args, state.max_steps)


class Schedule(LambdaLR):
    """The rates of the run file, also where a resumed run has other ones than before.

    So have its optimizer's weight decay, betas and epsilon.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, factor: Callable[[int], float]):
        super().__init__(optimizer, factor)
        self._constants = [
            {key: group[key] for key in ("weight_decay", "betas", "eps") if key in group}
            for group in optimizer.param_groups
        ]

    def load_state_dict(self, state_dict: dict) -> None:
        """Takes the step of a checkpoint, not its rates, which its optimizer has brought, too."""
        ours = ("base_lrs", "_last_lr", "_constants")
        super().load_state_dict({key: state_dict[key] for key in state_dict if key not in ours})
        for group, base, factor, constants in zip(
            self.optimizer.param_groups,
            self.base_lrs,
            self.lr_lambdas,
            self._constants,
            strict=True,
        ):
            group["initial_lr"], group["lr"] = base, base * factor(self.last_epoch)
            group.update(constants)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def _optimizer(settings: StageSettings, trainer: Trainer) -> torch.optim.Optimizer:
    """Makes the optimizer of a stage, and gives it to the Trainer."""
    stage, arguments = settings.stage, settings.arguments
    if stage.muon is None:
        return trainer.create_optimizer()
    groups = muon_groups(
        trainer.model,
        set(trainer.get_decay_parameter_names(trainer.model)),
        (stage.learning_rate.peak, stage.muon.peak),
        arguments.weight_decay,
    )
    betas = (arguments.adam_beta1, arguments.adam_beta2)
    trainer.optimizer = MuonAndAdamW(groups, betas, arguments.adam_epsilon)
    return trainer.optimizer


def summary(
    settings: StageSettings, data: StageData, model: ChineseModernBertForMaskedLM, start: str | None
) -> str:
    """What a stage will do, in three lines.

    Args:
        start: what it starts from, if not from the settings' source.
    """
    rows, arguments = data.order.drawn_before(settings.steps), settings.arguments
    growing = ", fewer rows at first" if settings.stage.batch_warmup else ""
    dtype = torch.bfloat16 if arguments.bf16 else model.dtype
    backend, reason = choose_attention(model.config._attn_implementation, arguments.device, dtype)
    return (
        f"stage {settings.number}: {model.num_parameters() / 1e6:.1f} M parameters, from "
        f"{start or settings.source or 'fresh weights'}\n"
        f"  {settings.steps:,} steps × {settings.stage.rows_per_step} rows × "
        f"{data.rows.seq_len} tokens{growing} = {rows * data.rows.seq_len:,} positions, "
        f"{rows / len(data.rows):.2f} epochs of {settings.stage.train_rows}\n"
        f"  attention: {backend} ({reason})"
    )
