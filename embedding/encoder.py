"""A SentenceTransformer behind the same two calls as the lexical scorers."""

import filecmp
import hashlib
import os
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer

from embedding.architectures import ARCHITECTURES, check_outputs, find_file
from pretraining.files import is_path, read_text, sha256_of

ROOT = Path(__file__).resolve().parent.parent
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Opening:
    """How a model is opened.

    Args:
        path: a folder, or a name on the Hub.
        dimensions: how many dimensions of a vector are used (Matryoshka); None uses all.
        dtype: "fp32" or "bf16"; None uses the one that config.json names.
        runs_code: whether code that the model brings may run; a model named by its user's command
            may, one that a stranger's file names may not.
    """

    path: str
    dimensions: int | None = None
    dtype: str | None = None
    runs_code: bool = True

    @classmethod
    def of(cls, name: str, dtype: str | None = None) -> "Opening":
        """`FOLDER` or `FOLDER@DIMENSIONS`.

        Raises:
            ValueError: if it is a path to no folder, or to one that does not hold a model.
        """
        path, at, dimensions = name.rpartition("@")
        if not (at and dimensions.isdigit()) or Path(name).is_dir():
            path, dimensions = name, ""
        if dimensions and not int(dimensions):
            raise ValueError(f"{name}: at least one dimension is needed.")
        folder = Path(path)
        if not folder.is_dir() and is_path(path):
            raise ValueError(f"{path}: there is no such folder.")
        if folder.is_dir() and not any(
            (folder / name).exists() for name in ("config.json", "modules.json")
        ):
            raise ValueError(
                f"{path} holds neither config.json nor modules.json: not a model's folder."
            )
        return cls(path, int(dimensions) if dimensions else None, dtype)

    @property
    def name(self) -> str:
        """`FOLDER` or `FOLDER@DIMENSIONS`."""
        return self.path if self.dimensions is None else f"{self.path}@{self.dimensions}"

    def fingerprint(self) -> str:
        """What tells the vectors of one model from another's: weights, modules, prompts, size.

        Of a model on the Hub it is the commit.

        Raises:
            OSError: if there is no such model.
        """
        digest = hashlib.sha256(repr(self.dimensions).encode())
        # Of the encoder and of modules such as 2_Dense; a checkout may hold models of other runs.
        patterns = ("*.safetensors", "*.bin", "*config*.json", "modules.json", "[0-9]_*/*")
        patterns += ("*_[0-9]_*/*",)  # of a Router, such as query_0_Transformer
        patterns += ("tokenizer.json", "vocab.txt", "*.model")
        files = [file for each in patterns for file in sorted(Path(self.path).glob(each))]
        if not files:  # a name on the Hub, where a file's folder is named after the commit
            config = find_file(self.path, "config.json") or find_file(self.path, "modules.json")
            digest.update(f"{self.path} {config and config.parent.name}".encode())
        for file in filter(Path.is_file, files):
            digest.update(sha256_of(file).encode())
        return digest.hexdigest()

    def brings_known_code(self) -> bool:
        """Whether all code of the folder is this repository's, file by file, and none is named that
        lies elsewhere ("user/repository--module.Class")."""
        folder = Path(self.path)
        if folder.resolve() == ROOT:
            return True
        tree = os.walk(folder, followlinks=True)  # modules lie in folders of their own
        files = [Path(place, name) for place, _, names in tree for name in names]
        settings = (
            f for f in files if fnmatch(f.name, "*config*.json") or f.name == "modules.json"
        )
        return (
            folder.is_dir()
            and not any("--" in read_text(file) for file in settings)
            and all(
                (ROOT / file.name).is_file() and filecmp.cmp(file, ROOT / file.name, shallow=False)
                for file in files
                if file.suffix == ".py"
            )
        )

    def open(
        self, architecture: str = "bi_encoder"
    ) -> SentenceTransformer | CrossEncoder | MultiVectorEncoder:
        """Opens it, with the code that the folder brings if that may run, as one of
        `ARCHITECTURES`.

        Raises:
            ValueError: if its vectors have fewer dimensions than are asked for, or a cross-encoder
                has more than one output, or dimensions are asked of it.
        """
        chosen = ARCHITECTURES[architecture]
        if architecture == "cross_encoder":
            if self.dimensions is not None:
                raise ValueError(f"{self.name}: a cross-encoder has no vectors; leave @… out.")
            check_outputs(self.path)
        options = dict(chosen.options)
        if architecture == "bi_encoder":
            options["truncate_dim"] = self.dimensions
        dtype = {} if self.dtype is None else {"dtype": DTYPES[self.dtype]}
        model = chosen.model(
            self.path, trust_remote_code=self.runs_code, model_kwargs=dtype, **options
        )
        # The library takes the whole vector where it is shorter.
        if self.dimensions is not None and model.get_embedding_dimension() != self.dimensions:
            raise ValueError(
                f"{self.name}: its vectors have {model.get_embedding_dimension()} dimensions."
            )
        return model


class Encoder:
    """Cosines of a model's vectors. A text is encoded once, however often it occurs.

    Prompts are those that the model was saved with: its default prompt for similarity, the
    prompts for queries and documents for search.

    Args:
        model: any SentenceTransformer.
        batch_size: texts at a time; the library sorts them by length before.
    """

    def __init__(self, model: SentenceTransformer, batch_size: int = 32):
        self.model = model
        self.batch_size = batch_size
        self._known: dict[tuple[str, str], np.ndarray] = {}

    def similar(self, left: list[str], right: list[str]) -> np.ndarray:
        """(pairs,): the cosine of each pair."""
        return (self._vectors("encode", left) * self._vectors("encode", right)).sum(axis=1)

    def search(self, queries: list[str], documents: list[str]) -> np.ndarray:
        """(queries, documents): all cosines."""
        return (
            self._vectors("encode_query", queries) @ self._vectors("encode_document", documents).T
        )

    def _vectors(self, method: str, texts: list[str]) -> np.ndarray:
        """(texts, size), fp32, of length 1."""
        new = [text for text in dict.fromkeys(texts) if (method, text) not in self._known]
        if new:
            vectors = getattr(self.model, method)(
                new,
                batch_size=self.batch_size,
                normalize_embeddings=True,
                convert_to_tensor=True,
                show_progress_bar=len(new) > 1_000,
            )
            rows = vectors.float().cpu().numpy()
            self._known |= {(method, text): row for text, row in zip(new, rows, strict=True)}
        return np.stack([self._known[method, text] for text in texts])
