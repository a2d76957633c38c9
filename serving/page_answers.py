"""What the buttons of the demo page call: texts and files in, HTML out, mistakes told in words."""

import functools
import logging
import time
from collections.abc import Callable
from pathlib import Path

import gradio as gr

from serving import page_html as html
from serving.page import (
    PageError,
    cut_into_pieces,
    cut_remark,
    fill_masks,
    judge_words,
    max_tokens_of,
    read_input,
    read_texts,
    similarities,
)
from serving.page_examples import PASSAGES
from serving.page_models import Models, OpenModel
from serving.page_search import (
    MAX_PASSAGES,
    SearchIndex,
    build_index,
    read_passages,
    search,
    split_passages,
)

FAILED = "出错了，请换一段文字再试。 Something went wrong; please try another text."

log = logging.getLogger(__name__)


def in_words(answer: Callable[..., str]) -> Callable[..., str]:
    """Shows an error in place of a result; what is not the visitor's is logged, too."""

    @functools.wraps(answer)
    def shown(*arguments):
        try:
            return answer(*arguments)
        except PageError as error:
            return html.error(str(error))
        except Exception:
            log.exception("no answer")
            return html.error(FAILED)

    return shown


def remarks(opened: OpenModel, started: float, dropped: int = 0) -> str:
    """What stands below a result: was the text cut, what answered, how long it took."""
    notes = [cut_remark(dropped)] if dropped else []
    notes += [opened.note] if opened.note else []
    took = f"{(time.perf_counter() - started) * 1e3:,.0f} ms"
    return "".join(map(html.note, notes)) + html.foot(opened.name, took)


class Answers:
    """What the page's buttons call: texts in, HTML out."""

    def __init__(self, models: Models):
        self.models = models

    @in_words
    def fill(self, text: str) -> str:
        """Fills the masks of a text."""
        opened, started = self.models.filling, time.perf_counter()
        result = fill_masks(opened.runtime, text)
        return html.page(html.filled(result), remarks(opened, started, result.dropped))

    @in_words
    def judge(self, text: str) -> str:
        """Colors the words of a text."""
        opened, started = self.models.filling, time.perf_counter()
        words, dropped = judge_words(opened.runtime, text)
        return html.page(
            html.judged(words), html.surprises(words), remarks(opened, started, dropped)
        )

    @in_words
    def cut(self, text: str) -> str:
        """Shows words, tokens and characters."""
        parts, dropped = cut_into_pieces(self.models.filling.runtime, text)
        return html.page(html.pieces(parts), html.note(cut_remark(dropped)) if dropped else "")

    @in_words
    def compare(self, text: str) -> str:
        """Compares the lines of a text."""
        opened, started = self.models.vectors, time.perf_counter()
        runtime = opened.runtime
        texts, left_out = read_texts(text, runtime.tokenizer, max_tokens_of(runtime))
        cosines = similarities(runtime.vectors(texts))
        return html.page(
            html.heat_map(texts, cosines), *map(html.note, left_out), remarks(opened, started)
        )

    @in_words
    def label(self, text: str) -> str:
        """Finds the entities of a text."""
        started, pipeline = time.perf_counter(), self.models.entities
        tokenizer = self.models.filling.runtime.tokenizer
        read = read_input(text, tokenizer, max_tokens_of(self.models.filling.runtime))
        found = pipeline(read.text)
        opened = OpenModel(self.models.filling.runtime, "PyTorch, fp32")
        nothing = "没有找到实体。 No entities were found."
        return html.page(
            html.entities(read.text, found),
            "" if found else html.note(nothing),
            remarks(opened, started, read.dropped),
        )

    def read_file(self, file: str | None, progress=gr.Progress()) -> tuple[SearchIndex | None, str]:  # noqa: B008
        """Indexes a file that was dropped, and deletes it: the index and what to say of it."""
        if file is None:
            return None, ""
        try:
            try:
                passages = read_passages(Path(file))
            finally:
                Path(file).unlink(missing_ok=True)
            return self.index(passages, progress)
        except PageError as error:
            return None, html.error(str(error))
        except FileNotFoundError:  # another visitor dropped the same one
            return None, html.error("请再放入一次文件。 Please drop the file once more.")
        except Exception:
            log.exception("no index")
            return None, html.error(FAILED)

    def read_sample(self, progress=gr.Progress()) -> tuple[SearchIndex, str]:  # noqa: B008
        """Indexes the passages that the page brings."""
        return self.index(split_passages(PASSAGES), progress)

    def index(self, passages: list[str], progress: gr.Progress) -> tuple[SearchIndex, str]:
        started = time.perf_counter()

        def report(done: int, total: int) -> None:
            progress((done, total), desc="正在计算向量 Computing vectors", unit="段 passages")

        index = build_index(self.models.vectors.runtime, passages, report)
        said = (
            f"已就绪：{len(index.passages):,} 段，用时 {time.perf_counter() - started:.1f} 秒。 "
            f"Ready: {len(index.passages):,} passages."
        )
        if not index.is_complete:
            said += (
                f" 只搜索前 {MAX_PASSAGES:,} 段。 Only the first {MAX_PASSAGES:,} of "
                f"{len(passages):,} passages can be found."
            )
        return index, html.page(html.done(said))

    def ask_sample(
        self, index: SearchIndex | None, question: str
    ) -> tuple[SearchIndex, dict | str, str]:
        """Asks a question, of the passages that the page brings where no file was dropped."""
        if index is not None:
            return index, gr.skip(), self.search(index, question)
        index, said = self.read_sample()
        return index, said, self.search(index, question)

    @in_words
    def search(self, index: SearchIndex | None, question: str) -> str:
        """Finds passages of the file for a question."""
        if index is None:
            raise PageError(
                "请先放入文件，或使用示例。 Please drop a file first, or take the example."
            )
        opened, started = self.models.vectors, time.perf_counter()
        found, dropped = search(opened.runtime, index, question)
        return html.page(html.hits(index.passages, found), remarks(opened, started, dropped))
