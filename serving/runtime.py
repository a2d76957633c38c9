"""A model folder in torch, ONNX Runtime or OpenVINO, with one interface.

model = Runtime.open("exported", "onnx", int8=True)
model.fill_masks(["今天[MASK]气很好。"])
Runtime.open("embedding-model", "torch").vectors(["今天下雨。", "明天晴。"])
"""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from serving.model_folder import ModelFolder, open_model_folder

# Runtime and whether it is int8 -> its file, as the Hub's tools look for it.
FILES = {
    ("onnx", False): "onnx/model.onnx",
    ("onnx", True): "onnx/model_quantized.onnx",
    ("openvino", False): "openvino/openvino_model.xml",
    ("openvino", True): "openvino/openvino_model_qint8_quantized.xml",
}
RUNTIMES = ("torch", "onnx", "openvino")

# (batch, sequence) ids and mask, int64 -> {output: array}; multiple choice has (batch, choices,
# sequence).
Forward = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]

MISSING = "not installed: {}. In a checkout, `python -m pip install '.[export]'` installs it."


@dataclass(frozen=True)
class Fill:
    """A token for a [MASK], and its probability."""

    token: str
    probability: float


def softmax(x: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis."""
    exponents = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def padded(
    rows: Sequence[Sequence[int]], pad_id: int, side: str = "right"
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask (rows, longest), int64, of rows of ids."""
    width = max(map(len, rows))
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for place, row in enumerate(rows):
        there = slice(width - len(row), width) if side == "left" else slice(len(row))
        ids[place, there], mask[place, there] = row, 1
    return ids, mask


class Runtime:
    """Texts in, arrays out.

    Texts of similar length share a batch, so that there is little padding; results are in the
    order of the texts.

    Args:
        folder: what the model is.
        forward: runs it on one batch.
        batch_size: texts at a time.
    """

    def __init__(self, folder: ModelFolder, forward: Forward, batch_size: int = 16):
        self.folder = folder
        self.forward = forward
        self.batch_size = batch_size
        self.tokenizer: Tokenizer = folder.tokenizer()

    @classmethod
    def open(
        cls,
        path: str | Path,
        runtime: str,
        int8: bool = False,
        threads: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "Runtime":
        """Opens a model folder.

        Args:
            path: for torch a model folder, for the others one that `serving.export` wrote.
            runtime: "torch", "onnx" or "openvino".
            int8: whether to take the int8 file, not with torch.
            threads: CPU threads, None for torch's number. With torch they are set for the process.
            dtype: of torch's weights.

        Raises:
            ImportError: if the runtime is not installed.
            OSError, ValueError: if the folder or the file is missing, or the runtime unknown.
        """
        if runtime not in RUNTIMES:
            raise ValueError(f"runtime {runtime!r} is unknown; choose {', '.join(RUNTIMES)}.")
        folder = open_model_folder(Path(path))
        threads = threads or torch.get_num_threads()
        if runtime == "torch":
            if int8:
                raise ValueError("there is no int8 in torch: choose onnx or openvino.")
            torch.set_num_threads(threads)
            return cls(folder, torch_forward(folder.load(dtype)))
        file = folder.path / FILES[runtime, int8]
        if not file.is_file():
            raise ValueError(f"{file} is missing; `python -m serving.export` writes it.")
        return cls(folder, FORWARDS[runtime](file, threads))

    def batches(self, texts: Sequence[str]) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
        """The places of some texts, their ids and their mask, shortest texts first."""
        encoded = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(texts)), key=lambda place: len(encoded[place]))
        for first in range(0, len(order), self.batch_size):
            places = order[first : first + self.batch_size]
            yield places, *padded([encoded[place] for place in places], self.folder.pad_id)

    def outputs(self, texts: Sequence[str], name: str) -> list[np.ndarray]:
        """One of the model's outputs for each text, without padding.

        Raises:
            ValueError: if the model has no such output.
        """
        if self.folder.head == "ForMultipleChoice":
            raise ValueError(
                "texts alone are no choices: call forward with (batch, choices, tokens)."
            )
        if name not in self.folder.outputs:
            raise ValueError(
                f"{self.folder.path} gives {', '.join(self.folder.outputs)}, no {name}."
            )
        results: list[np.ndarray] = [None] * len(texts)
        for places, ids, mask in self.batches(texts):
            output = self.forward(ids, mask)[name]
            of_tokens = self.folder.is_of_tokens(name)
            for row, place in enumerate(places):
                results[place] = output[row, : mask[row].sum()] if of_tokens else output[row]
        return results

    def logits(self, texts: Sequence[str]) -> list[np.ndarray]:
        """For each text (labels,), or (tokens, labels) where tokens are labeled.

        Raises:
            ValueError: if the model has no `logits`.
        """
        return self.outputs(texts, "logits")

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, size), from an embedding model.

        Raises:
            ValueError: if the model is another.
        """
        return np.stack(self.outputs(texts or [""], "sentence_embedding"))[: len(texts)]

    @property
    def mask_id(self) -> int:
        """The id of the mask token.

        Raises:
            ValueError: if the configuration has none.
        """
        if (found := self.folder.config.get("mask_token_id")) is None:
            raise ValueError(
                f"{self.folder.path / 'config.json'} has no mask_token_id: set it to the "
                "tokenizer's."
            )
        return found

    def fill_masks(self, texts: Sequence[str], top: int = 5) -> list[list[list[Fill]]]:
        """For each text and each [MASK] in it, the likeliest tokens.

        Raises:
            ValueError: if the model is no masked language model, or does not know its mask token.
        """
        if self.folder.head != "ForMaskedLM" or self.folder.pooling:
            raise ValueError(f"{self.folder.path} has no MLM head, so it cannot fill masks.")
        mask_id = self.mask_id
        results: list[list[list[Fill]]] = [[] for _ in texts]
        for places, ids, mask in self.batches(texts):
            logits = self.forward(ids, mask)["logits"]
            for row, column in np.argwhere(ids == mask_id):
                chances = softmax(logits[row, column])
                best = np.argsort(-chances, kind="stable")[:top]
                results[places[row]].append(
                    [Fill(self.token_text(int(n)), float(chances[n])) for n in best]
                )
        return results

    def token_text(self, token: int) -> str:
        """An id as people read it: its text, or its name where it is a part of a character."""
        text = self.tokenizer.decode([token], skip_special_tokens=False)
        if text and "\ufffd" not in text:
            return text
        return self.tokenizer.id_to_token(token) or f"[{token}]"


def torch_forward(model: torch.nn.Module) -> Forward:
    """A model in torch, as `ModelFolder.load` gives it."""

    @torch.inference_mode()
    def forward(ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        outputs = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
        return {name: value.float().numpy() for name, value in outputs.items()}

    return forward


def onnx_forward(file: Path, threads: int) -> Forward:
    """A file in ONNX Runtime, on the CPU.

    Raises:
        ImportError: if onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(MISSING.format("onnxruntime")) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Where a CPU has no VNNI, int8 products would otherwise saturate in 16 bits.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def forward(ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        results = session.run(names, {"input_ids": ids, "attention_mask": mask})
        return dict(zip(names, results, strict=True))

    return forward


@functools.cache
def openvino_core():
    """The one `openvino.Core` of this process.

    Its CPU plugin sets the stack for signal handlers, and puts back at its end what it found at its
    beginning. When the first of two cores ends first, the second puts back a stack that is no more,
    and the next signal (a DataLoader worker that ends, say) kills the process.

    Raises:
        ImportError: if openvino is not installed, or too old.
    """
    try:
        import openvino
    except ImportError as error:
        raise ImportError(MISSING.format("openvino")) from error
    if int(openvino.__version__.split(".")[0]) < 2026:
        raise ImportError(
            f"openvino {openvino.__version__} computes this model wrongly; install 2026.0 or newer."
        )
    return openvino.Core()


def openvino_forward(file: Path, threads: int) -> Forward:
    """A file in OpenVINO, on the CPU, in fp32: it would choose bf16 by itself where it can.

    Raises:
        ImportError: if openvino is not installed.
    """
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino_core().compile_model(file, "CPU", settings)
    names = [output.any_name for output in compiled.outputs]
    own = threading.local()  # the one request of `compiled` would mix up the texts of two threads

    def forward(ids: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        results = own.request.infer({"input_ids": ids, "attention_mask": mask})
        return {name: results[number] for number, name in enumerate(names)}

    return forward


FORWARDS: dict[str, Callable[[Path, int], Forward]] = {
    "onnx": onnx_forward,
    "openvino": openvino_forward,
}
