"""Muon for the layers' matrices beside AdamW: torch's own updates, made together."""

import copy

import pytest
import torch

from pretraining.run.muon import MuonAndAdamW, muon_groups, orthogonalize

RATES = (1e-3, 4e-3)  # AdamW's and Muon's
DECAY = 0.1


class Network(torch.nn.Module):
    """Matrices of two shapes in its layers, and parameters outside of them."""

    def __init__(self):
        super().__init__()
        self.embeddings = torch.nn.Embedding(10, 16)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(3))
        self.layers.append(torch.nn.Linear(16, 40, bias=False))
        self.norm = torch.nn.LayerNorm(40)

    def forward(self, ids):
        hidden = self.embeddings(ids)
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden))
        return self.norm(hidden).square().mean()


DECAYED = {"embeddings.weight", *(f"layers.{number}.weight" for number in range(4))}


def make(network: Network) -> MuonAndAdamW:
    return MuonAndAdamW(muon_groups(network, DECAYED, RATES, DECAY), betas=(0.9, 0.98))


def train(network: Network, optimizers: list[torch.optim.Optimizer], steps: range) -> None:
    for step in steps:
        ids = torch.arange(step, step + 6) % 10
        network(ids).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network()


def test_the_updates_are_those_of_torchs_muon_and_adamw(network):
    other = copy.deepcopy(network)
    train(network, [make(network)], range(5))
    parameters = dict(other.named_parameters())
    matrices = [parameters[f"layers.{number}.weight"] for number in range(4)]
    vectors = [each for name, each in parameters.items() if name not in DECAYED]
    adamw = {"lr": RATES[0], "betas": (0.9, 0.98), "fused": True}
    optimizers = [
        torch.optim.Muon(matrices, lr=RATES[1], weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([parameters["embeddings.weight"]], weight_decay=DECAY, **adamw),
        torch.optim.AdamW(vectors, weight_decay=0.0, **adamw),
    ]
    before = [each.clone() for each in matrices]
    train(other, optimizers, range(5))
    for name, parameter in network.named_parameters():
        # bf16 products of many matrices at once may add in another order than those of one.
        bound = 2e-4 if name in DECAYED else 1e-7
        torch.testing.assert_close(parameter, parameters[name], atol=bound, rtol=0)
    assert all((a - b).abs().max() > 2e-3 for a, b in zip(matrices, before, strict=True))


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_updates_have_singular_values_near_one_and_the_same_directions(shape):
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    values = left.mT @ orthogonalize(matrices).float() @ right.mT
    diagonal = values.diagonal(dim1=1, dim2=2)
    # The iteration's polynomial ends in this band; a nearly singular direction may lag behind.
    assert ((diagonal > 0.4) & (diagonal < 1.3)).all()
    assert (values - torch.diag_embed(diagonal)).abs().max() < 0.1


def test_training_goes_on_from_a_saved_state_to_the_bit(network, tmp_path):
    optimizer = make(network)
    train(network, [optimizer], range(3))
    torch.save([network.state_dict(), optimizer.state_dict()], tmp_path / "saved.pt")
    train(network, [optimizer], range(3, 6))
    resumed = Network()
    weights, state = torch.load(tmp_path / "saved.pt")
    resumed.load_state_dict(weights)
    loaded = make(resumed)
    loaded.load_state_dict(state)
    train(resumed, [loaded], range(3, 6))
    for a, b in zip(network.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_muon_gets_the_layers_matrices_and_weight_decay_leaves_out_the_rest(network):
    groups = muon_groups(network, DECAYED, RATES, DECAY)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = [
        (group["muon"], group["lr"], group["weight_decay"], {names[id(p)] for p in group["params"]})
        for group in groups
    ]
    matrices = DECAYED - {"embeddings.weight"}
    vectors = set(names.values()) - DECAYED
    assert found == [
        (False, RATES[0], DECAY, {"embeddings.weight"}),
        (False, RATES[0], 0.0, vectors),
        (True, RATES[1], DECAY, matrices),
    ]


def test_vectors_are_refused():
    group = {
        "params": [torch.nn.Parameter(torch.ones(3))],
        "muon": True,
        "lr": 1,
        "weight_decay": 0,
    }
    with pytest.raises(ValueError, match="matrices only"):
        MuonAndAdamW([group])
