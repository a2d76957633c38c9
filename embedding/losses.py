"""The losses of a run: the library's, and one of ours for a teacher's vectors."""

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
    EmbedDistillLoss,
    MatryoshkaLoss,
    TripletDistanceMetric,
    TripletLoss,
)
from torch.nn import functional

from embedding.run_file import TaskSpec


class TeacherLoss(EmbedDistillLoss):
    """1 − cos(projected, teacher) + weight · mean (difference of cosines)² / their variance.

    Both terms take the teacher's vectors less their mean, since a teacher's may be all alike: E5's
    have cosines close to 0.84 for unrelated texts, so that a student that knows nothing would have
    hardly any loss. The first term teaches single vectors, through a linear map that is thrown away
    after training, or directly if the student's have the teacher's size. The second teaches the
    student's own space: the cosines of all pairs of texts of the batch are those of the teacher, at
    the full size and at each Matryoshka size. It is divided by the variance of the teacher's
    cosines, so that it is 1 if only their mean is right.

    Args:
        model: the student.
        vectors: (sentences, teacher's size), fp16, of length 1, on disk.
        similarity_weight: of the second term.
        dimensions: Matryoshka sizes, without the full one.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        vectors: np.ndarray,
        similarity_weight: float,
        dimensions: tuple[int, ...] = (),
    ):
        size = vectors.shape[1] if vectors.shape[1] != model.get_embedding_dimension() else None
        super().__init__(model, distance_metric="cosine", projection_dim=size)
        self.vectors = vectors
        self.register_buffer("mean", _mean_of(vectors).to(model.device))
        self.similarity_weight = similarity_weight
        self.sizes = (model.get_embedding_dimension(), *dimensions)

    def forward(self, sentence_features, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The two terms.

        Args:
            sentence_features: the tokens of one column of texts.
            labels: (batch,): the row of each text in the teacher's vectors.
        """
        (features,) = sentence_features
        student = self.model(features)["sentence_embedding"]
        rows = np.asarray(self.vectors[labels.cpu().numpy()], dtype=np.float32)
        teacher = torch.from_numpy(rows).to(student.device) - self.mean
        cosines = _cosines(teacher)
        scale = cosines.var(correction=0).clamp_min(1e-6) if len(cosines) else 1.0
        differences = [
            (_cosines(student[:, :size]) - cosines).square().sum() / max(len(cosines), 1) / scale
            for size in self.sizes
        ]
        return {
            "vectors": self.compute_loss_from_embeddings([student], [teacher]),
            "similarities": self.similarity_weight * torch.stack(differences).mean(),
        }


def _mean_of(vectors: np.ndarray) -> torch.Tensor:
    """(size,): the mean of all rows, read in blocks."""
    blocks = range(0, len(vectors), 65_536)
    sums = [np.asarray(vectors[at : at + 65_536], dtype=np.float64).sum(axis=0) for at in blocks]
    return torch.from_numpy(np.sum(sums, axis=0) / len(vectors)).float()


def _cosines(vectors: torch.Tensor) -> torch.Tensor:
    """(pairs,): the cosines of all pairs of different rows."""
    unit = functional.normalize(vectors.float(), dim=-1)
    first, second = torch.triu_indices(len(unit), len(unit), 1, device=unit.device)
    return (unit @ unit.T)[first, second]


def loss_for(
    spec: TaskSpec,
    model: SentenceTransformer | CrossEncoder | MultiVectorEncoder,
    dimensions: tuple[int, ...],
    vectors: np.ndarray | None = None,
) -> torch.nn.Module:
    """The loss of a task, at all Matryoshka sizes.

    Args:
        dimensions: Matryoshka sizes, without the full one.
        vectors: the teacher's, for tasks of kind `teacher`.

    Raises:
        ValueError: if a size is not below the model's.
    """
    if isinstance(model, CrossEncoder):
        if spec.loss == "cross_entropy":
            return BinaryCrossEntropyLoss(model)
        return CrossEncoderRankingLoss(model, mini_batch_size=spec.mini_batch)
    if isinstance(model, MultiVectorEncoder):
        return LateInteractionRankingLoss(model, mini_batch_size=spec.mini_batch)
    size = model.get_embedding_dimension()
    if wrong := [d for d in dimensions if not 0 < d < size]:
        raise ValueError(f"dimensions: {wrong[0]}, but the model's vectors have {size}.")
    if spec.loss == "teacher":
        return TeacherLoss(model, vectors, spec.similarity_weight, dimensions)
    loss = _plain_loss(spec, model)
    return MatryoshkaLoss(model, loss, [size, *dimensions]) if dimensions else loss


def _plain_loss(spec: TaskSpec, model: SentenceTransformer) -> torch.nn.Module:
    match spec.loss:
        case "ranking":
            return CachedMultipleNegativesRankingLoss(
                model, scale=spec.scale, mini_batch_size=spec.mini_batch
            )
        case "triplet":
            return TripletLoss(model, TripletDistanceMetric.COSINE, triplet_margin=spec.margin)
        case "cosent":
            return CoSENTLoss(model, scale=spec.scale)
        case "cosine":
            return CosineSimilarityLoss(model)
    raise AssertionError(spec.loss)
