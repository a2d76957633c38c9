"""Opens a model folder as any user would, and fills masks in Chinese sentences.

python examples/fill_mask.py runs/quickstart/stage2/final
python examples/fill_mask.py FOLDER "今天的天气真[MASK]。"
"""

import argparse

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

SENTENCES = [
    "周末我们去菜市场买了新鲜的[MASK]。",
    "明天可能会下雨，出门记得带[MASK]。",
    "他在图书馆里借了两本[MASK]。",
]


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
    parser.add_argument("folder", help="model folder, or repository on the Hub")
    parser.add_argument("sentences", nargs="*", default=SENTENCES, help="each with one [MASK]")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.folder, trust_remote_code=True)
    model = AutoModelForMaskedLM.from_pretrained(arguments.folder, trust_remote_code=True).eval()
    print("| sentence | likeliest fills |")
    print("|---|---|")
    for sentence in arguments.sentences:
        fills = best_fills(model, tokenizer, sentence, count=5)
        print(f"| {sentence} |", ", ".join(f"{text} {share:.1%}" for text, share in fills), "|")


if __name__ == "__main__":
    main()
