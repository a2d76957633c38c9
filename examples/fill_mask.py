"""Opens a model folder as any user would, cuts a text into tokens and fills masks.

python examples/fill_mask.py
python examples/fill_mask.py runs/quickstart/stage2/final
python examples/fill_mask.py FOLDER "今天的天气真[MASK]。"
"""

import argparse

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

SENTENCES = [
    "请在命令行中[MASK]以下命令。",
    "本法自公布之日起[MASK]。",
    "今天天气很[MASK]，我们出去走走吧。",
    "周末我们去菜市场买了新鲜的[MASK]。",
]
TEXT = "周末我们坐高铁去苏州，在平江路喝了一壶碧螺春😊。"


def show_tokens(tokenizer, text: str) -> str:
    """The tokens of a text, each as the characters it stands for."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return "┊".join(text[start:end] for start, end in dict.fromkeys(offsets["offset_mapping"]))


def best_fills(model, tokenizer, sentence: str, count: int) -> list[tuple[str, float]]:
    """The likeliest tokens for the first [MASK] of a sentence, with their probabilities.

    Raises:
        ValueError: if the sentence has no [MASK].
    """
    inputs = tokenizer(sentence, return_tensors="pt")
    places = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()
    if len(places) == 0:
        raise ValueError(f"no [MASK] in {sentence!r}")
    with torch.inference_mode():
        logits = model(**inputs).logits[0, places[0, 0]]
    probabilities, ids = logits.softmax(-1).topk(count)
    return [
        (tokenizer.decode(token), share.item())
        for token, share in zip(ids, probabilities, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default=".", help="model folder or Hub repository")
    parser.add_argument("sentences", nargs="*", default=SENTENCES, help="each with one [MASK]")
    arguments = parser.parse_args()
    disable_progress_bar()  # a model this small is open before it could move
    tokenizer = AutoTokenizer.from_pretrained(arguments.folder, trust_remote_code=True)
    model = AutoModelForMaskedLM.from_pretrained(arguments.folder, trust_remote_code=True).eval()
    config = model.config
    print(
        f"{arguments.folder}: {config.num_hidden_layers} layers × {config.hidden_size}, "
        f"{model.num_parameters() / 1e6:.1f} M parameters, {len(tokenizer):,} vocabulary entries\n"
        f"tokens: {show_tokens(tokenizer, TEXT)}\n"
    )
    for sentence in arguments.sentences:
        fills = best_fills(model, tokenizer, sentence, count=5)
        shown = "  ".join(f"{text} {share:.0%}" for text, share in fills).replace("\n", "⏎")
        print(f"{sentence}   {shown}")


if __name__ == "__main__":
    main()
