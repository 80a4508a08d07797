"""How far the student's class probabilities are from the teacher's. To be called in fp32, outside autocast.

N images, L anchors over all levels, A anchors per location, P locations over all levels, K classes.
"""

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from tid_core.detectors.outputs import DenseOutputs


def binary_divergences(logits_NLK: Tensor, teacher_NLK: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 times the KL of the teacher's yes or no to each class from the student's, summed over the classes, (N, L).

    It is the binary cross entropy with the teacher's probabilities, less what the teacher has with itself: the
    gradient is the same, and it is 0 where the two agree. None reaches the teacher.
    """
    logits_NLK, teacher_NLK = logits_NLK.float() / temperature, teacher_NLK.detach().float() / temperature
    goal_NLK = teacher_NLK.sigmoid()
    least_NLK = binary_cross_entropy_with_logits(teacher_NLK, goal_NLK, reduction="none")
    entropy_NLK = binary_cross_entropy_with_logits(logits_NLK, goal_NLK, reduction="none")
    return (entropy_NLK - least_NLK).sum(dim=-1) * temperature**2


def mean_at_location(values_NL: Tensor, outputs: DenseOutputs) -> Tensor:
    """The mean over the anchors of each location, (N, P)."""
    return values_NL.view(len(values_NL), -1, outputs.num_anchors).mean(dim=2)
