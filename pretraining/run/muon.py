"""Muon for the matrices of the layers, AdamW for everything else, as one optimizer.

Muon replaces the update of a matrix by the nearest orthogonal one, so that all its directions are
learned at one rate. It is meant for the matrices within the layers; embeddings, decoder, norms and
biases stay with AdamW.

Source: Keller Jordan, "Muon: An optimizer for hidden layers in neural networks"; the scale of the
update, which lets both parts have rates and weight decay of one size, from arXiv 2502.16982.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch.optim import Optimizer
from torch.optim.adamw import adamw

MOMENTUM = 0.95

# Of the iteration's polynomial; they maximize its slope at zero.
A, B, C = 3.4445, -4.7750, 2.0315
ITERATIONS = 5


class MuonAndAdamW(Optimizer):
    """Muon and AdamW in one state_dict, under one learning rate schedule.

    Args:
        groups: parameter groups with `params`, `lr`, `weight_decay` and `muon`: True for matrices
            that Muon updates, False for what AdamW does.
        betas, eps: AdamW's.

    Raises:
        ValueError: if a parameter of Muon is not a matrix.
    """

    def __init__(
        self,
        groups: Iterable[dict],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        # `fused` also tells load_state_dict to keep AdamW's step counts beside their parameters.
        super().__init__(groups, {"betas": betas, "eps": eps, "fused": True})
        for group in self.param_groups:
            if group["muon"] and any(each.ndim != 2 for each in group["params"]):
                raise ValueError("Muon updates matrices only; leave other parameters to AdamW.")

    @torch.no_grad()
    def step(self, closure=None):
        """Updates all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if params := [each for each in group["params"] if each.grad is not None]:
                update = self._muon if group["muon"] else self._adamw
                update(params, group)
        return loss

    def _muon(self, params: list[torch.Tensor], group: dict) -> None:
        grads = [each.grad for each in params]
        for param in params:
            if not self.state[param]:
                self.state[param]["momentum_buffer"] = torch.zeros_like(param)
        momenta = [self.state[param]["momentum_buffer"] for param in params]
        torch._foreach_lerp_(momenta, grads, 1 - MOMENTUM)
        updates = torch._foreach_lerp(grads, momenta, MOMENTUM)  # Nesterov's
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        alike = defaultdict(list)  # matrices of one shape share their matrix products
        for param, update in zip(params, updates, strict=True):
            alike[param.shape].append((param, update))
        for shape, pairs in alike.items():
            matrices, stacked = zip(*pairs, strict=True)
            orthogonal = orthogonalize(torch.stack(stacked)).to(matrices[0].dtype)
            # An orthogonal matrix has entries of 1 / sqrt(longer side); AdamW's updates are 0.2.
            scale = 0.2 * max(shape) ** 0.5
            torch._foreach_add_(matrices, orthogonal.unbind(), alpha=-group["lr"] * scale)

    def _adamw(self, params: list[torch.Tensor], group: dict) -> None:
        for param in params:
            if not self.state[param]:
                self.state[param]["step"] = torch.zeros((), device=param.device)
                self.state[param]["exp_avg"] = torch.zeros_like(param)
                self.state[param]["exp_avg_sq"] = torch.zeros_like(param)
        states = [self.state[param] for param in params]
        beta1, beta2 = group["betas"]
        adamw(
            params,
            [param.grad for param in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Nearly the orthogonal matrices nearest to some, by Newton-Schulz iteration.

    With M = U S V^T it gives U S' V^T, the entries of S' between about 0.7 and 1.2.

    Args:
        matrices: (n, rows, columns), any dtype.

    Returns:
        (n, rows, columns) in bf16, which is precise enough and much faster.
    """
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT.contiguous() if tall else x  # the smaller of the two products with itself
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]  # no singular value above 1
    for _ in range(ITERATIONS):
        product = x @ x.mT
        polynomial = torch.baddbmm(product, product, product, beta=B, alpha=C)
        x = torch.baddbmm(x, polynomial, x, beta=A)
    return x.mT if tall else x


def muon_groups(
    model: torch.nn.Module, decayed: set[str], rates: tuple[float, float], weight_decay: float
) -> list[dict]:
    """The groups of a model's trainable parameters for `MuonAndAdamW`.

    Muon takes the matrices within the modules named `layers`. Its group is the last, because
    Trainer logs the learning rate of the first.

    Args:
        decayed: names of the parameters with weight decay.
        rates: peak learning rates of AdamW and of Muon.
    """
    groups = [
        {"params": [], "muon": muon, "lr": rates[muon], "weight_decay": decay}
        for muon, decay in ((False, weight_decay), (False, 0.0), (True, weight_decay))
    ]
    for name, param in model.named_parameters():
        if param.requires_grad:
            in_layer = param.ndim == 2 and "layers" in name.split(".")
            groups[2 if in_layer else 0 if name in decayed else 1]["params"].append(param)
    return [group for group in groups if group["params"]]
