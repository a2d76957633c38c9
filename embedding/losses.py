"""The losses of a run: the library's, and two of ours for a teacher's vectors."""

import numpy as np
import torch
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.cross_encoder.losses import (
    CachedMultipleNegativesRankingLoss as CrossEncoderRankingLoss,
)
from sentence_transformers.multi_vector_encoder.losses import (
    CachedMultiVectorMultipleNegativesRankingLoss as LateInteractionRankingLoss,
)
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    CoSENTLoss,
    CosineSimilarityLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
    TripletDistanceMetric,
    TripletLoss,
)
from torch import nn
from torch.nn import functional

from embedding.principal_axes import principal_axes
from embedding.run_file import TaskSpec

# Of the Matryoshka sizes below the full one, each beside 1 for that.
SHORTER_WEIGHT = 0.3


class TeacherLoss(nn.Module):
    """1 − cos(student, teacher), and weight · mean (difference of cosines)² / their variance.

    The teacher's vectors are taken less their mean, since they may be all alike: E5's have cosines
    close to 0.84 for unrelated texts, so that a student that knows nothing would have hardly any
    loss. They are turned to their principal axes, the widest first, and cut to the student's size,
    so that the student's first dimensions are the best ones to keep (Matryoshka); where the student
    has more dimensions, the first ones learn the axes. That is the first term. The second teaches
    the cosines of all pairs of texts of the batch, by the teacher's full vectors; it is divided by
    their variance, so that it is 1 if only their mean is right. Both are means over the sizes.

    A student that has learned vectors of its own would have to turn them to the teacher's axes: the
    second term alone leaves them where they are.

    Args:
        model: the student.
        vectors: (sentences, teacher's size), fp16, of length 1, on disk.
        similarity_weight: of the second term.
        dimensions: Matryoshka sizes, without the full one.
        with_vectors: whether the first term counts.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        vectors: np.ndarray,
        similarity_weight: float,
        dimensions: tuple[int, ...] = (),
        with_vectors: bool = True,
    ):
        super().__init__()
        self.model, self.vectors = model, vectors
        self.similarity_weight = similarity_weight
        self.with_vectors = with_vectors
        self.sizes = (model.get_embedding_dimension(), *dimensions)
        self.mean, self.axes, _ = principal_axes(vectors)

    def forward(self, sentence_features, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The terms by name.

        Args:
            sentence_features: the tokens of one column of texts.
            labels: (batch,): the row of each text in the teacher's vectors.
        """
        (features,) = sentence_features
        student = self.model(features)["sentence_embedding"].float()
        rows = np.asarray(self.vectors[labels.cpu().numpy()], dtype=np.float32)
        teacher = torch.from_numpy((rows - self.mean) @ self.axes).to(student.device)
        cosines = _cosines(teacher)
        # The one pair of a last batch of two has no variance.
        scale = cosines.var(correction=0).clamp_min(1e-6) if len(cosines) > 1 else 1.0
        vectors, similarities = [], []
        for size in self.sizes:
            cut = student[:, :size]
            shared = min(size, teacher.shape[1])
            vectors.append(
                1 - functional.cosine_similarity(cut[:, :shared], teacher[:, :shared]).mean()
            )
            differences = (_cosines(cut) - cosines).square()
            similarities.append(differences.sum() / max(len(cosines), 1) / scale)
        terms = {"similarities": self.similarity_weight * torch.stack(similarities).mean()}
        return terms | ({"vectors": torch.stack(vectors).mean()} if self.with_vectors else {})


class NeighborsLoss(nn.Module):
    """Mean (difference of cosines)² / their variance, of near pairs and of far ones, added.

    Near are the texts of a group, far those of different groups, which are far more: so each kind
    has a mean of its own, which is 1 if only the mean of its cosines is right. The teacher's
    vectors are taken less their mean, as in `TeacherLoss`. Mean over the sizes.

    Args:
        model: the student.
        vectors: (texts, teacher's size), fp16, of length 1, on disk.
        dimensions: Matryoshka sizes, without the full one.
    """

    def __init__(
        self, model: SentenceTransformer, vectors: np.ndarray, dimensions: tuple[int, ...] = ()
    ):
        super().__init__()
        self.model, self.vectors = model, vectors
        self.sizes = (model.get_embedding_dimension(), *dimensions)
        self.mean = principal_axes(vectors)[0]

    def forward(self, sentence_features, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The terms by name.

        Args:
            sentence_features: the tokens of each column of texts; a group has one in each.
            labels: (groups, columns): the row of each text in the teacher's vectors.
        """
        columns = [self.model(features)["sentence_embedding"] for features in sentence_features]
        student = torch.cat(columns).float()
        rows = np.asarray(self.vectors[labels.T.flatten().cpu().numpy()], dtype=np.float32)
        teacher = _cosines(torch.from_numpy(rows - self.mean).to(student.device))
        group = torch.arange(len(labels), device=student.device).repeat(labels.shape[1])
        first, second = _pairs(group)
        kinds = {"near": group[first] == group[second], "far": group[first] != group[second]}
        differences = [(_cosines(student[:, :size]) - teacher).square() for size in self.sizes]
        mean = torch.stack(differences).mean(dim=0)
        return {
            kind: mean[chosen].mean() / teacher[chosen].var(correction=0).clamp_min(1e-6)
            for kind, chosen in kinds.items()
            if chosen.any()  # the last batch of an epoch may be a single group
        }


def _pairs(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first and the second of all pairs of different rows, (pairs,) each."""
    return tuple(torch.triu_indices(len(rows), len(rows), 1, device=rows.device))


def _cosines(vectors: torch.Tensor) -> torch.Tensor:
    """(pairs,): the cosines of all pairs of different rows."""
    unit = functional.normalize(vectors.float(), dim=-1)
    return (unit @ unit.T)[_pairs(unit)]


def loss_for(
    spec: TaskSpec,
    model: SentenceTransformer | CrossEncoder | MultiVectorEncoder,
    dimensions: tuple[int, ...],
    vectors: np.ndarray | None = None,
) -> torch.nn.Module:
    """The loss of a task, at all Matryoshka sizes.

    Args:
        dimensions: Matryoshka sizes, without the full one.
        vectors: the teacher's, for tasks of kind `teacher` or `neighbors`.

    Raises:
        ValueError: if a size is not below the model's.
    """
    scale = {} if spec.scale is None else {"scale": spec.scale}
    if isinstance(model, CrossEncoder):
        if spec.loss == "cross_entropy":
            return BinaryCrossEntropyLoss(model)
        return CrossEncoderRankingLoss(model, mini_batch_size=spec.mini_batch or 32, **scale)
    if isinstance(model, MultiVectorEncoder):
        return LateInteractionRankingLoss(model, mini_batch_size=spec.mini_batch or 32, **scale)
    size = model.get_embedding_dimension()
    if wrong := [d for d in dimensions if not 0 < d < size]:
        raise ValueError(f"dimensions: {wrong[0]}, but the model's vectors have {size}.")
    if spec.kind == "teacher":
        with_vectors = spec.loss == "vectors"
        return TeacherLoss(model, vectors, spec.similarity_weight, dimensions, with_vectors)
    if spec.kind == "neighbors":
        return NeighborsLoss(model, vectors, dimensions)
    loss = _plain_loss(spec, model, scale)
    weights = [1.0, *[SHORTER_WEIGHT] * len(dimensions)]
    return MatryoshkaLoss(model, loss, [size, *dimensions], weights) if dimensions else loss


def _plain_loss(spec: TaskSpec, model: SentenceTransformer, scale: dict) -> torch.nn.Module:
    match spec.loss:
        case "ranking":
            # Each text has to find its partner among those of the other side, in both directions.
            directions = ("query_to_doc", "doc_to_query")
            options = {"directions": directions, "partition_mode": "per_direction", **scale}
            if spec.mini_batch is None:
                return MultipleNegativesRankingLoss(model, **options)
            return CachedMultipleNegativesRankingLoss(
                model, mini_batch_size=spec.mini_batch, **options
            )
        case "triplet":
            return TripletLoss(model, TripletDistanceMetric.COSINE, triplet_margin=spec.margin)
        case "cosent":
            return CoSENTLoss(model, **scale)
        case "cosine":
            return CosineSimilarityLoss(model)
    raise AssertionError(spec.loss)
