"""The loss of a teacher's vectors, by hand-made vectors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from embedding.losses import NeighborsLoss, TeacherLoss, loss_for
from embedding.principal_axes import principal_axes
from embedding.run_file import TaskSpec


class Fixed(torch.nn.Module):
    """A student whose vectors are given."""

    device = torch.device("cpu")

    def __init__(self, vectors: torch.Tensor):
        super().__init__()
        self.vectors = torch.nn.Parameter(vectors)

    def get_embedding_dimension(self) -> int:
        return self.vectors.shape[1]

    def forward(self, features) -> dict:
        return {"sentence_embedding": self.vectors}


def test_a_student_on_the_teachers_principal_axes_has_no_loss():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(200, 4)) * [1, 5, 2, 0.1] + [9, 0, 0, 0]
    teacher = torch.tensor(vectors, dtype=torch.float32)
    centered = teacher - teacher.mean(dim=0)
    labels = torch.arange(200)
    axes = torch.tensor(principal_axes(vectors)[1])
    assert axes.abs().argmax(dim=0).tolist() == [1, 2, 0, 3]  # the widest first
    loss = TeacherLoss(Fixed(3 * centered @ axes), vectors, similarity_weight=2.0)
    for term in loss([{}], labels).values():
        torch.testing.assert_close(term, torch.tensor(0.0), atol=1e-5, rtol=0)
    narrow = TeacherLoss(Fixed((centered @ axes)[:, :3]), vectors, similarity_weight=1.0)
    wide = TeacherLoss(
        Fixed(torch.cat([centered @ axes, torch.zeros(200, 2)], dim=1)), vectors, 1.0
    )
    for other in (narrow, wide):
        terms = other([{}], labels)
        torch.testing.assert_close(terms["vectors"], torch.tensor(0.0), atol=1e-5, rtol=0)
        assert terms["similarities"] < 0.01  # the narrowest axis hardly counts


def test_similarities_count_at_each_size_by_their_weight_and_the_teachers_spread():
    half = 0.5**0.5
    teacher = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], dtype=np.float32)
    vectors = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 1]])

    def similarities(rows: int, weight: float, *sizes: int) -> float:
        loss = TeacherLoss(Fixed(vectors[:rows]), teacher, weight, sizes)
        return loss([{}], torch.arange(rows))["similarities"].item()

    # Cosines of the teacher's first three: 0, −1, 0, of variance 2/9; of the student √½, 0, ½, and
    # √½, 0, √½ in two dimensions.
    full = 4.5 * (half**2 + 1 + 0.25) / 3
    assert similarities(3, 1.0) == pytest.approx(full)
    assert similarities(3, 4.0) == pytest.approx(4 * full)
    assert similarities(3, 1.0, 2) == pytest.approx((full + 4.5 * (half**2 + 1 + half**2) / 3) / 2)
    assert similarities(1, 1.0) == 0  # the last batch of an epoch may be a single text


def test_similarities_alone_do_not_depend_on_the_students_axes():
    random = np.random.default_rng(0)
    teacher = random.normal(size=(20, 4)).astype(np.float32)
    student = torch.tensor(random.normal(size=(20, 3)), dtype=torch.float32)
    turn = torch.linalg.qr(torch.tensor(random.normal(size=(3, 3)), dtype=torch.float32)).Q
    spec = TaskSpec("t", "teacher", loss="similarities", similarity_weight=1.0)
    labels = torch.arange(20)
    plain, turned = (
        loss_for(spec, Fixed(each), (), teacher)([{}], labels) for each in (student, student @ turn)
    )
    assert plain.keys() == {"similarities"}
    torch.testing.assert_close(turned["similarities"], plain["similarities"])


def test_the_one_pair_of_a_last_batch_of_two_counts_like_any_other():
    teacher = np.eye(4, dtype=np.float16)
    loss = TeacherLoss(Fixed(torch.randn(2, 4)), teacher, similarity_weight=1.0)
    assert loss([{}], torch.arange(2))["similarities"] < 5


def test_near_and_far_pairs_count_for_as_much_and_each_by_its_spread():
    teacher = np.array([[2, 0], [2, 1], [0, 2], [1, 3], [-3, 0], [-2, -6]], dtype=np.float32)
    assert teacher.mean(axis=0).tolist() == [0, 0]
    labels = torch.tensor([[0, 1], [2, 3], [4, 5]])  # three groups of two texts

    def terms(student: torch.Tensor, groups: torch.Tensor, *sizes: int) -> dict[str, float]:
        class Columns(Fixed):
            def forward(self, features) -> dict:
                return {"sentence_embedding": self.vectors[features["rows"]]}

        loss = NeighborsLoss(Columns(student), teacher, sizes)
        columns = [{"rows": rows} for rows in groups.T]
        return {name: term.item() for name, term in loss(columns, groups).items()}

    known = torch.tensor(teacher)
    assert terms(known, labels) == pytest.approx({"near": 0, "far": 0}, abs=1e-6)
    assert terms(known, labels[:1]).keys() == {"near"}
    unit = torch.nn.functional.normalize(known, dim=1)
    cosines = unit @ unit.T
    near = cosines[[0, 2, 4], [1, 3, 5]]
    far = torch.stack(
        [cosines[i, j] for i in range(6) for j in range(i + 1, 6) if i // 2 != j // 2]
    )
    same = torch.ones(6, 2)  # a student to whom all texts are the same: cosine 1
    found = terms(same, labels)
    assert found["near"] == pytest.approx(((near - 1) ** 2).mean() / near.var(correction=0))
    assert found["far"] == pytest.approx(((far - 1) ** 2).mean() / far.var(correction=0))
    wide = torch.cat([known, torch.zeros(6, 1)], dim=1)
    assert terms(wide, labels, 2) == pytest.approx({"near": 0, "far": 0}, abs=1e-6)
    assert terms(wide, labels, 1)["far"] > 0.1  # one value cannot hold the cosines


def test_a_size_that_the_model_does_not_have_is_refused():
    spec = TaskSpec("task", "pairs", (Path("x"),), columns=("q", "t"))
    with pytest.raises(ValueError, match="dimensions: 3, but the model's vectors have 3"):
        loss_for(spec, Fixed(torch.eye(3)), (3,))


def test_both_sides_of_a_pair_look_for_their_partner():
    class Given(Fixed):
        def forward(self, features) -> dict:
            return {"sentence_embedding": features["vectors"]}

    left, right = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    spec = TaskSpec("t", "pairs", (Path("x"),), loss="ranking")
    loss = loss_for(spec, Given(left), ())
    one_way = loss([{"vectors": left}, {"vectors": right}], None)
    torch.testing.assert_close(one_way, loss([{"vectors": right}, {"vectors": left}], None))


def test_a_ranking_in_pieces_is_that_of_the_whole_batch(tiny_encoder):
    texts = ["今天下雨。", "外面在下雨。", "图书馆几点关门？", "阅览室开到九点。", "买菜", "去菜场"]
    found = {}
    for pieces in (None, 2):
        model = SentenceTransformer(str(tiny_encoder), trust_remote_code=True, device="cpu")
        spec = TaskSpec("t", "pairs", (Path("x"),), loss="ranking", mini_batch=pieces)
        loss = loss_for(spec, model, (16,))
        value = loss([model.tokenize(texts[::2]), model.tokenize(texts[1::2])], None)
        value.backward()
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        found[pieces] = [value.detach(), torch.cat([each.flatten() for each in gradients])]
    for whole, in_pieces in zip(*found.values(), strict=True):
        torch.testing.assert_close(in_pieces, whole, atol=1e-5, rtol=1e-4)
