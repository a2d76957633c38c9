"""Small models of transformers' ModernBERT with random weights, in which every weight matters."""

import torch
import transformers
from transformers import ModernBertConfig

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "num_labels": 3,
}

# What our configuration says of a checkpoint with everything that the paper's model has not.
WITH_BIASES = {
    "norm_type": "layernorm",
    "norm_bias": True,
    "attention_bias": True,
    "mlp_bias": True,
    "classifier_bias": True,
}

HEADS = (
    "Model",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)


def modernbert(head: str, **settings):
    """transformers' class of a head, in eval mode.

    Its own initialization leaves biases at zero and norms at one, where a forgotten one is unseen.
    """
    if head == "ForQuestionAnswering":
        settings = settings | {"num_labels": 2}
    torch.manual_seed(0)
    model = getattr(transformers, f"ModernBert{head}")(ModernBertConfig(**SHAPE | settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            else:
                parameter.uniform_(*((0.5, 1.5) if "norm.weight" in name else (-0.5, 0.5)))
    return model
