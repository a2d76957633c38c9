"""The texts of the test sets, so that none of them is trained on."""

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from embedding.scripts import to_simplified
from embedding.tasks import TASKS, Pairs, Ranking, Task, read_task
from pretraining.data.sentences import sentence_spans

# Shorter ones, such as 好的 within a paragraph, say nothing about a test.
SHORTEST_SENTENCE = 8


def normalized(text: str) -> str:
    """Letters, digits and simplified characters alone, after NFKC, in lower case.

    Two texts that differ in punctuation, width, spaces or script are one text.
    """
    text = to_simplified(unicodedata.normalize("NFKC", text).lower())
    return "".join(c for c in text if c.isalnum())


def long_sentences(text: str) -> list[str]:
    """The sentences of a text that are long enough to tell where they come from."""
    sentences = (text[start:end] for start, end in sentence_spans(text))
    return [sentence for sentence in sentences if len(sentence) >= SHORTEST_SENTENCE]


def task_texts(task: Task) -> list[str]:
    """Every text of a task, and the sentences of its documents."""
    if isinstance(task, Pairs):
        return [*task.left, *task.right]
    if isinstance(task, Ranking):
        return [*task.queries, *(text for row in task.candidates for text in row)]
    sentences = [sentence for each in task.documents for sentence in long_sentences(each)]
    return [*task.queries, *task.documents, *sentences]


class HeldOut:
    """What must not be in training.

    Args:
        tasks: folder of the unpacked tasks; all of `embedding.tasks.TASKS` are read.
    """

    def __init__(self, tasks: Path):
        self._texts = {
            key
            for name in TASKS
            for text in task_texts(read_task(name, tasks))
            if (key := normalized(text))
        }

    def __len__(self) -> int:
        return len(self._texts)

    def holds(self, text: str) -> bool:
        """Whether a text, or a long sentence of it, is in a test set, whatever its punctuation."""
        return any(normalized(each) in self._texts for each in (text, *long_sentences(text)))

    def holds_any(self, texts: Iterable[str]) -> bool:
        """Whether one of the texts is. No pair of a test set can be left then, either."""
        return any(self.holds(text) for text in texts)
