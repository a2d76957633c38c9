"""The models behind the demo page: int8 in ONNX Runtime, torch until that file exists.

A model that comes without an export is exported once, in the background, into the cache of the Hub
(`HF_HOME`); until that is done, and where the packages for it are missing, torch answers.
"""

import hashlib
import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import transformers
from huggingface_hub.constants import HF_HOME

from pretraining.files import sha256_of
from serving.export import missing_packages
from serving.model_folder import open_model_folder
from serving.runtime import FILES, Runtime

ROOT = Path(__file__).resolve().parent.parent
FORMAT = "onnx"
# Files here that decide what an export is.
EXPORTING = ("conversion", "export", "model_folder", "quantize")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenModel:
    """A model that answers.

    Attributes:
        runtime: what computes.
        name: what the page calls it.
        note: what a visitor should know about it, Chinese, then English; may be empty.
    """

    runtime: Runtime
    name: str
    note: str = ""


def open_export(folder: Path) -> OpenModel:
    """An export of `serving.export`: its int8 file, or fp32 if the export left int8 out.

    Raises:
        ImportError: if onnxruntime is not installed.
        OSError, ValueError: if it is no export.
    """
    int8 = (folder / FILES[FORMAT, True]).is_file()
    runtime = Runtime.open(folder, FORMAT, int8=int8)
    # The first call of a session is slow, and so would be the first visitor's.
    runtime.forward(np.full((1, 8), 5), np.ones((1, 8), dtype=np.int64))
    return OpenModel(runtime, f"ONNX Runtime, {'int8' if int8 else 'fp32'}")


def open_torch(model: Path, note: str) -> OpenModel:
    """A model folder in torch.

    Raises:
        OSError, ValueError: if it is no model folder.
    """
    return OpenModel(Runtime.open(model, "torch"), "PyTorch, fp32", note)


def cached_export(model: Path) -> Path:
    """The cache's folder for a model's export; it changes with weights, settings and code."""
    patterns = ("*.json", "*.py", "*.safetensors", "*.bin", "[0-9]_*/*")
    files = [file for pattern in patterns for file in model.glob(pattern) if file.is_file()]
    files += [Path(__file__).with_name(f"{name}.py") for name in EXPORTING]
    sums = "".join(sha256_of(file) for file in sorted(files))
    key = hashlib.sha256(sums.encode()).hexdigest()[:16]
    return Path(HF_HOME).resolve() / "chinese-modernbert" / "exports" / key


def export_into_cache(model: Path) -> OpenModel:
    """Exports a model folder in a process of its own, and opens what it wrote.

    Raises:
        OSError: if the export fails; the message is its last line.
    """
    export = cached_export(model)
    command = [sys.executable, "-m", "serving.export", "--model", str(model.resolve())]
    command += ["--output", str(export), "--formats", FORMAT, "--int8"]
    log.info("exporting %s to int8, once, into %s", model, export)
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if not export.is_dir():  # two pages at once: the other one's export will do
        lines = ended.stderr.strip().splitlines()
        raise OSError(lines[-1] if lines else f"serving.export ended with {ended.returncode}.")
    log.info("%s", ended.stdout.strip())
    return open_export(export)


class Models:
    """The models of one page.

    Attributes:
        filling: fills masks.
        vectors: gives vectors of texts.
        entities: transformers' pipeline for entities, or None.
        waiting: names of the attributes above that an export will replace.

    Args:
        model: folder of a masked language model.
        embedding: folder of an embedding model, or an export of one.
        export: what `serving.export` made of `model`; None for the cache.
        entities: folder of a model for token classification; None for none.

    Raises:
        ImportError, OSError, ValueError: if a folder is not what it should be.
    """

    def __init__(
        self,
        model: Path,
        embedding: Path,
        export: Path | None = None,
        entities: Path | None = None,
    ):
        self.waiting: dict[str, Path] = {}
        self.filling = self._open("filling", model, export)
        expect(self.filling, "logits", f"{export or model}: fills need a masked language model")
        is_export = (embedding / FILES[FORMAT, False]).is_file()
        self.vectors = self._open("vectors", embedding, embedding if is_export else None)
        expect(self.vectors, "sentence_embedding", f"{embedding}: no modules.json, no vectors")
        self.entities = entity_pipeline(entities) if entities else None

    def _open(self, name: str, model: Path, export: Path | None) -> OpenModel:
        open_model_folder(model)
        if export:
            return open_export(export)
        if missing := ", ".join(missing_packages([FORMAT])):
            return open_torch(
                model,
                f"未安装 {missing}，改用 PyTorch，速度较慢。 "
                f"Not installed: {missing}; PyTorch answers instead, more slowly.",
            )
        if cached_export(model).is_dir():
            return open_export(cached_export(model))
        self.waiting[name] = model
        return open_torch(
            model,
            "正在后台导出 int8 模型（仅首次，约一分钟），之后会更快。 "
            "The int8 model is being exported (once, about a minute); then answers come faster.",
        )

    def prepare_in_background(self) -> threading.Thread:
        """Exports what the cache lacks; each model gives way when its export is there."""
        thread = threading.Thread(target=self._prepare, daemon=True)
        thread.start()
        return thread

    def _prepare(self) -> None:
        for name, model in list(self.waiting.items()):
            try:
                setattr(self, name, export_into_cache(model))
            except Exception as error:  # whatever it is, PyTorch answers
                log.warning("no int8: %s", error)
                note = "int8 导出失败，继续使用 PyTorch。 The export failed, so PyTorch answers."
                setattr(self, name, replace(getattr(self, name), note=note))
            del self.waiting[name]


def expect(opened: OpenModel, output: str, otherwise: str) -> None:
    """Refuses a model that lacks an output.

    Raises:
        ValueError: if it does.
    """
    if output not in opened.runtime.folder.outputs or (
        output == "logits" and opened.runtime.folder.head != "ForMaskedLM"
    ):
        raise ValueError(f"{otherwise}.")


def entity_pipeline(folder: Path) -> Callable[[str], list[dict]]:
    """Entities of a text: transformers' pipeline with neighboring tokens of a label joined.

    Raises:
        OSError, ValueError: if the folder has no model for token classification.
    """
    head = open_model_folder(folder).head
    if head != "ForTokenClassification":
        raise ValueError(f"{folder} is a {head}; entities need a ForTokenClassification.")
    return transformers.pipeline(
        "token-classification",
        model=str(folder),
        dtype="float32",
        trust_remote_code=True,
        aggregation_strategy="simple",
    )
