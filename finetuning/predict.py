"""Opens a fine-tuned folder and answers on plain text.

    python -m finetuning.predict FOLDER "菜很新鲜，下次还来。"
    python -m finetuning.predict FOLDER "哪里下雨？" --context "昨天长沙下了一夜的雨。"
    python -m finetuning.predict FOLDER "去哪里买？" --context "家里没有米了。" --choices 超市 车站

The folder is one that `finetuning.clue --save_models` left; what it answers follows from its head.
From Python: `Predictor(folder)([{"text": …}, …])`.
"""

import argparse
import json
from pathlib import Path

from transformers import AutoTokenizer

from finetuning.choice_data import BLANK
from finetuning.heads import HEADS
from finetuning.tasks import Task
from finetuning.training import SETTINGS_FILE, outputs
from pretraining.command import readable_errors
from pretraining.files import half_character, read_json
from pretraining.machine import default_device

# What an example of each head holds, besides what may be left out.
_NEEDED = {
    "classification": ("text",),
    "tokens": ("text",),
    "answers": ("question", "context"),
    "choices": ("text", "choices"),
}
_LEFT_OUT = {"text_pair": None, "label": None, "entities": None, "answers": ()}


class Predictor:
    """A fine-tuned model that answers on plain text.

    Args:
        folder: a folder with a fine-tuned model and its `task.json`.

    Raises:
        FileNotFoundError: if the folder was not left by a run of fine-tuning.
    """

    def __init__(self, folder: Path | str):
        file = Path(folder) / SETTINGS_FILE
        if not file.exists():
            raise FileNotFoundError(
                f"{file} is missing; name a folder that finetuning.clue --save_models left."
            )
        content = read_json(file)
        content["labels"] = content["labels"] and tuple(content["labels"])
        self.task = Task(read=None, splits={}, source=str(folder), **content)
        self._head = HEADS[self.task.head]
        self._settings = self._head.settings(self.task)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        self._tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
        self._model = self._head.auto.from_pretrained(folder, trust_remote_code=True).to(
            default_device()
        )

    def __call__(self, examples: list[dict]) -> list:
        """The answers to examples.

        Args:
            examples: for classes {"text"} and, for a pair, "text_pair"; for entities {"text"}; for
                answers {"question", "context"}; for choices {"text", "choices"} and, for a
                question about the text, "text_pair".

        Returns:
            For classes {"label", "score"}; for entities [[start, end, label, words], …]; for
            answers {"text", "start", "score"}; for choices the index of one.

        Raises:
            ValueError: on an example that lacks something, or whose text is empty or no text.
        """
        examples = list(examples)
        for number, example in enumerate(examples):
            self._check(example, f"example {number}")
        if not examples:
            return []
        full = [
            _LEFT_OUT | {"id": number, "group": number} | example
            for number, example in enumerate(examples)
        ]
        rows, decoding = self._head.features(full, self._tokenizer, self._settings, training=False)
        collator = self._head.collator_of(self._tokenizer)
        found = outputs(self._model, rows, collator, self._head.outputs)
        answers = self._head.decode_rows(found, decoding)
        return list(map(self._head.present, examples, answers))

    def _check(self, example: dict, where: str) -> None:
        needed = _NEEDED[self.task.head]
        for key in needed:
            if not example.get(key):
                raise ValueError(
                    f"{where}: {key!r} is missing or empty; {self.task.name} needs "
                    f"{', '.join(needed)}."
                )
        for key in {*needed, "text_pair"} & example.keys():
            texts = example[key] if key == "choices" else [example[key] or ""]
            if not isinstance(texts, list | tuple):
                raise ValueError(f"{where}: 'choices' must be a list of texts, got {texts!r}.")
            for text in texts:
                if not isinstance(text, str) or (key == "choices" and not text):
                    raise ValueError(f"{where}: {key!r} must hold text, got {text!r}.")
                if half_character(text):
                    raise ValueError(f"{where}: {key!r} is not text in UTF-8.")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m finetuning.predict", description="Answers of a fine-tuned model."
    )
    parser.add_argument("folder", type=Path, help="left by finetuning.clue --save_models")
    parser.add_argument("text", help="a text; with --context, the question about it")
    parser.add_argument("--pair", help="the second text of a pair")
    parser.add_argument("--context", help="the text that a question is about")
    parser.add_argument(
        "--choices", nargs="+", help=f"what to choose from; a blank in the text is {BLANK}"
    )
    return parser.parse_args(arguments)


def example_of(options: argparse.Namespace) -> dict:
    """The example that the options describe."""
    if options.choices:
        text = options.context or options.text
        question = options.text if options.context else options.pair
        return {"text": text, "text_pair": question, "choices": options.choices}
    if options.context:
        return {"question": options.text, "context": options.context}
    return {"text": options.text, "text_pair": options.pair}


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    with readable_errors("predict"):
        [answer] = Predictor(options.folder)([example_of(options)])
    print(json.dumps(answer, ensure_ascii=False))


if __name__ == "__main__":
    main()
