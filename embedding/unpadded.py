"""Batches of texts laid end to end, so that nothing is computed for padding.

sentence-transformers makes such batches itself, but with flash-attn only. Our encoder takes them on
every device and by every attention backend.
"""

from sentence_transformers import SentenceTransformer
from transformers import DataCollatorWithFlattening


def lay_end_to_end(model: SentenceTransformer) -> None:
    """Lets a model's texts be laid end to end, if its encoder is ours, in place.

    The dense layer and the pooling behind the encoder read the same (1, tokens, size) states.
    """
    transformer = model[0]
    encoder = getattr(transformer, "auto_model", None)  # a StaticEmbedding or Router has none
    if encoder is None or encoder.config.model_type != "chinese_modernbert":
        return
    transformer.data_collator = DataCollatorWithFlattening(
        return_flash_attn_kwargs=True, return_position_ids=True, return_seq_idx=True
    )
    if transformer.model_forward_params is not None:  # else all are passed on
        transformer.model_forward_params |= {
            *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")
        }
    transformer._flatten_position_offset = 0  # positions count from 0 in each text
    transformer.can_flatten_inputs = True
