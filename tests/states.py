"""States and gradients of a model on a batch, and how near two of them have to be."""

import torch

from batches import documents, pad_rows, real_tokens

# fp32 carries 24 bits (6e-8) and the states have size one. Backends, and batches of another shape,
# add up the same numbers in another order: up to 1e-6 after three layers, and ten times that is
# far below what a wrong mask or position does (0.01 and more).
STATE_TOLERANCE = 1e-5

# The same, relative to the largest entry of each parameter's gradient: a gradient is a sum over
# all tokens, so its size and its rounding grow with the batch.
GRADIENT_TOLERANCE = 1e-5


def masked_batch(*lengths, side="right", seed=1):
    """A padded batch with 30 % of its tokens masked, at least one in every row, and labels."""
    batch = pad_rows(documents(*lengths, seed=seed), side)
    chosen = torch.rand(batch["input_ids"].shape, generator=torch.Generator().manual_seed(seed))
    chosen[:, 0 if side == "right" else -1] = 0.0
    chosen = (chosen < 0.3) & real_tokens(batch)
    labels = batch["input_ids"].masked_fill(~chosen, -100)
    return batch | {"input_ids": batch["input_ids"].masked_fill(chosen, 4), "labels": labels}


def states_of(model, batch):
    """(total_tokens, hidden_size) of the real tokens, without a graph."""
    with torch.no_grad():
        return model(**batch).last_hidden_state[real_tokens(batch)]


def states_alone(model, docs):
    return torch.cat([states_of(model, {"input_ids": doc[None]}) for doc in docs])


def forward_and_gradients(model, batch):
    """States, and every parameter's gradient of a random projection of them."""
    model.zero_grad()
    states = model(**batch).last_hidden_state
    probe = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
    (states * probe).sum().backward()
    return states.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


def assert_same_gradients(ours, reference, tolerance):
    assert ours.keys() == reference.keys()
    for name, gradient in reference.items():
        difference = (ours[name] - gradient).abs().max() / gradient.abs().max()
        assert difference <= tolerance, f"{name}: {difference:.1e}"
