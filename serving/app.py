"""A page on which to try the models: fills, confidence, tokens, similarity, search, entities.

    python -m serving.app
    python -m serving.app --embedding EMBEDDING-MODEL --entities TUNED-MODEL

Opens on this machine alone, at http://127.0.0.1:7860; needs no network. Answers come from int8
exports of the models, which are made once and kept in the cache of the Hub (`HF_HOME`).
A Space runs this file as it is.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# ruff: noqa: E402 (a Space runs `python serving/app.py`, where the repository must be found first)
if not __package__:
    sys.path[0] = str(ROOT)

import gradio as gr

from pretraining.command import readable_errors
from serving import page_examples as examples
from serving.page import MASK, MAX_TEXTS
from serving.page_answers import Answers
from serving.page_html import STYLE
from serving.page_models import Models
from serving.page_search import MAX_BYTES, MAX_PASSAGES

HEAD = """<div class="cm cm-head"><h1>中文 ModernBERT</h1>
<p>从零训练的中文编码器：填空、分词、相似度与搜索。<br>
A Chinese encoder built from scratch: fills, tokens, similarity, search.</p></div>"""


def text_tab(
    title: str,
    name: str,
    hint: str,
    answer: Callable[[str], str],
    samples: list[str],
    lines: int = 2,
) -> tuple[gr.Textbox, gr.HTML]:
    """A tab with a text, a button, examples and a result, all of which have ids after `name`.

    Returns:
        The text and the result.
    """
    with gr.Tab(title, elem_id=f"{name}-tab"):
        gr.HTML(f'<div class="cm-hint">{hint}</div>')
        text = gr.Textbox(
            label="文字 Text",
            value=samples[0],
            lines=lines,
            max_lines=12,
            elem_id=f"{name}-text",
        )
        button = gr.Button("运行 Run", variant="primary", elem_id=f"{name}-run")
        result = gr.HTML(elem_id=f"{name}-result", render=False)
        gr.Examples(
            [[sample] for sample in samples],
            text,
            result,
            answer,
            cache_examples=False,
            run_on_click=True,
            label="示例（点击即运行） Examples, one click",
            elem_id=f"{name}-examples",
        )
        result.render()
        gr.on([button.click, text.submit], answer, text, result, api_name=name)
    return text, result


def search_tab(answers: Answers) -> None:
    """The tab that takes a file."""
    with gr.Tab("搜索 Search", elem_id="search-tab"):
        gr.HTML(
            '<div class="cm-hint">放入一个 UTF-8 文本文件，按意思查找段落。文件最大 '
            f"{MAX_BYTES // 1_000_000} MB，最多 {MAX_PASSAGES:,} 段；读取后立即删除。<br>"
            "Drop a UTF-8 text file and find passages by their meaning: up to "
            f"{MAX_BYTES // 1_000_000} MB and {MAX_PASSAGES:,} passages. It is deleted as soon "
            "as it has been read.</div>"
        )
        index = gr.State()
        with gr.Row():
            with gr.Column(scale=2):
                file = gr.File(label="文件 File", height=150, elem_id="search-file")
                sample = gr.Button("使用示例文件 Take the example file", elem_id="search-sample")
            with gr.Column(scale=3):
                question = gr.Textbox(
                    label="问题 Question",
                    value=examples.QUESTIONS[0],
                    lines=1,
                    elem_id="search-text",
                )
                button = gr.Button("搜索 Search", variant="primary", elem_id="search-run")
                state = gr.HTML(elem_id="search-state")
        result = gr.HTML(elem_id="search-result", render=False)
        samples = gr.Examples(
            [[text] for text in examples.QUESTIONS],
            question,
            label="示例问题（点击即搜索） Example questions, one click",
            elem_id="search-examples",
        )
        result.render()
        samples.load_input_event.then(
            answers.ask_sample, [index, question], [index, state, result], api_name=False
        )
        file.change(answers.read_file, file, [index, state], api_name=False)
        sample.click(answers.read_sample, None, [index, state], api_name=False)
        gr.on(
            [button.click, question.submit],
            answers.search,
            [index, question],
            result,
            api_name=False,
        )


def build(models: Models) -> gr.Blocks:
    """The page, not yet started."""
    answers = Answers(models)
    with gr.Blocks(
        analytics_enabled=False, title="中文 ModernBERT", delete_cache=(600, 3600)
    ) as blocks:
        gr.HTML(HEAD)
        text, result = text_tab(
            "填空 Fill",
            "fill",
            f"在要填的位置写 {MASK}；颜色表示模型的把握。<br>"
            f"Write {MASK} where a word is missing; the color shows how sure the model is.",
            answers.fill,
            examples.FILL,
        )
        text_tab(
            "逐词 Word by word",
            "judge",
            "依次遮住每个词，看模型给原词的概率；橙色的词出乎意料，也许是错字。<br>"
            "Each word is hidden in turn; orange ones were not expected and may be slips.",
            answers.judge,
            examples.JUDGE,
        )
        text_tab(
            "切分 Tokens",
            "cut",
            "同一段文字的词、词元与字符。<br>"
            "The words, tokens and characters of a text, side by side.",
            answers.cut,
            examples.CUT,
        )
        text_tab(
            "相似度 Similarity",
            "compare",
            f"每行一段文字，最多 {MAX_TEXTS} 行。<br>One text a line, up to {MAX_TEXTS}.",
            answers.compare,
            examples.COMPARE,
            lines=5,
        )
        search_tab(answers)
        if models.entities:
            text_tab(
                "实体 Entities",
                "label",
                "人名、地名、机构等。<br>Persons, places, organizations and others.",
                answers.label,
                examples.LABEL,
            )
        blocks.load(answers.fill, text, result, api_name=False)  # nobody sees an empty page
    return blocks


def theme() -> gr.themes.Base:
    """Fonts of the visitor's own system: none is fetched."""
    fonts = ["system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]
    return gr.themes.Soft(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        font=fonts,
        font_mono=["ui-monospace", "monospace"],
    ).set(
        body_background_fill="*neutral_50",
        body_text_color_subdued="*neutral_500",
        block_background_fill="white",
        block_border_width="0px",
        block_title_text_color="*neutral_600",
        block_title_text_color_dark="*neutral_300",
        block_title_background_fill="none",
        block_title_background_fill_dark="none",
        block_title_padding="0px",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_300",
        block_label_background_fill="none",
        block_label_background_fill_dark="none",
        input_border_width="1px",
        input_border_color="*neutral_300",
        input_border_color_dark="*neutral_600",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_600",
        button_border_width="1px",
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=ROOT, help="folder of the model (the root)")
    parser.add_argument("--export", type=Path, help="what serving.export wrote of it")
    parser.add_argument(
        "--embedding",
        type=Path,
        default=ROOT / "models/embedding",
        help="folder of an embedding model, or an export of one (models/embedding)",
    )
    parser.add_argument("--entities", type=Path, help="folder of a tuned token classification")
    parser.add_argument("--port", type=int, help="port (the first that is free from 7860)")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("serving").setLevel(logging.INFO)
    # Gradio asks its own address whether the page is up; no proxy knows it.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1,localhost")))
    with readable_errors("app"):
        models = Models(arguments.model, arguments.embedding, arguments.export, arguments.entities)
        models.prepare_in_background()
        build(models).launch(
            server_port=arguments.port,
            theme=theme(),
            css_paths=STYLE,
            footer_links=[],
            ssr_mode=False,
            max_file_size="10mb",  # above the page's own limit, so that its message is seen
        )


if __name__ == "__main__":
    main()
