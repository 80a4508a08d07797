"""What all points of a map have to say to each one of them.

Source: Cao et al., "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond", arXiv 1904.11492:
R(F) = F + W2 relu(LayerNorm(W1 sum over points p of softmax_p(W_k F) F)).

N images, C channels, H and W a level's grid, P its points.
"""

import torch
from torch import Tensor, nn

NOWHERE = -1e9
"""What a point of the padding has before a softmax over the points. Finite: an image may have no other points."""


class ContextBlock(nn.Module):
    """Adds to each point the same context of its image; at first it adds nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        # Without a bias, which would change no softmax.
        self.look = nn.Linear(channels, 1, bias=False)
        self.enter = nn.Linear(channels, inner)
        self.norm = nn.LayerNorm(inner)
        self.leave = nn.Linear(inner, channels)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, feat_NCHW: Tensor, valid_NHW: Tensor) -> Tensor:
        look_NHW = torch.einsum("nchw,c->nhw", feat_NCHW, self.look.weight[0])
        share_NP = look_NHW.masked_fill(~valid_NHW, NOWHERE).flatten(1).softmax(dim=1)
        context_NC = torch.einsum("ncp,np->nc", feat_NCHW.flatten(2), share_NP)
        added_NC: Tensor = self.leave(self.norm(self.enter(context_NC)).relu())
        return feat_NCHW + added_NC[:, :, None, None]
