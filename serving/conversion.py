"""A model in torch to ONNX and OpenVINO, in fp32 and int8."""

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from serving.model_folder import ModelFolder
from serving.runtime import openvino_core

# Old enough for every runtime in use; ONNX Runtime has no faster operators in later versions.
OPSET = 18

# A file of protobuf may not exceed 2 GiB; of larger models the weights go into one of their own.
LARGEST_FILE = 2**31 - 2**27


def to_onnx(folder: ModelFolder, model: nn.Module, file: Path) -> None:
    """Writes a model of torch as fp32 ONNX, for any batch and any length up to its context.

    Args:
        folder: what the model is.
        model: in fp32.
        file: to write.
    """
    # Example sizes of which no two are the same, nor 1: the graph holds for all others too.
    choices = (3,) if folder.head == "ForMultipleChoice" else ()
    ids = torch.ones(2, *choices, min(100, folder.max_tokens), dtype=torch.long)
    names = ("batch", *("choices" for _ in choices))
    sizes = [torch.export.Dim(name, min=1, max=2**16) for name in names]
    sizes.append(torch.export.Dim("sequence", min=1, max=folder.max_tokens))
    dynamic = dict(enumerate(sizes))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    weights = sum(x.numel() * x.element_size() for x in model.parameters())
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            model,
            kwargs=inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(folder.outputs),
            dynamic_shapes={name: dynamic for name in inputs},
            verbose=False,
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        program.save(file, external_data=weights > LARGEST_FILE)


def to_int8_onnx(source: Path, file: Path) -> None:
    """The int8 form of an fp32 ONNX file, for ONNX Runtime."""
    import onnx

    from serving.quantize import quantize

    onnx.save(quantize(onnx.load(source)), file)


def to_openvino(source: Path, file: Path) -> None:
    """An ONNX file as OpenVINO."""
    import openvino

    file.parent.mkdir(parents=True, exist_ok=True)
    # `openvino.convert_model` reports its use over the network; this reads the file and no more.
    openvino.save_model(openvino_core().read_model(source), file, compress_to_fp16=False)


def to_int8_openvino(source: Path, file: Path) -> None:
    """The int8 form of an fp32 ONNX file, for OpenVINO."""
    import onnx

    from serving.quantize import compress

    with tempfile.TemporaryDirectory() as folder:
        compressed = Path(folder, "model.onnx")
        onnx.save(compress(onnx.load(source)), compressed)
        to_openvino(compressed, file)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides what the exporter says about its own dependencies."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
