"""A connector that reads the question: it scales the visual tokens by what is asked (FiLM, Perez et al. 2018)."""

from torch import Tensor, nn

from connectors import Connector, Text, register


@register("question_gate")
class QuestionGate(Connector):
    """A linear layer whose channels are scaled by the mean of the question's embeddings."""

    reads_text = True

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, out_dim)
        self.projection = nn.Linear(in_dim, out_dim)
        self.gate = nn.Linear(out_dim, out_dim)

    def forward(self, features: Tensor, *, text: Text) -> Tensor:
        words = text.mask[..., None]  # (images, words, 1)
        question = (text.embeddings * words).sum(dim=1) / words.sum(dim=1).clamp(min=1)
        return self.projection(features.flatten(1, 2)) * (1 + self.gate(question))[:, None]
