"""Rein adapters: learned tokens that refine the frozen features after every block, and become the queries.

Shape legend: B images, T = P + N tokens, P prefix tokens (class and registers, first), N patches,
C embedding channels, L blocks, M learned tokens, R rank, D query channels.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn

SCALE_INIT = 0.001


class Rein(nn.Module):
    """Low-rank tokens per block; everything else is shared by all blocks (docs/method.md, section 1).

    Args:
        depth: number of blocks L.
        num_tokens: M, also the number of queries.
        rank: R of the factorised tokens T_l = A_l B_l.
        embed: C.
        query_dim: D; None = the head takes no queries.
        num_prefix: P.
    """

    def __init__(
        self, depth: int, num_tokens: int, rank: int, embed: int, query_dim: int | None, num_prefix: int = 1
    ) -> None:
        super().__init__()
        self.num_prefix = num_prefix
        self.tokens_a_LMR = nn.Parameter(torch.empty(depth, num_tokens, rank))
        self.tokens_b_LRC = nn.Parameter(torch.empty(depth, rank, embed))
        self.scale = nn.Parameter(torch.tensor(SCALE_INIT))
        self.token_to_feature = nn.Linear(embed, embed)
        self.delta = nn.Linear(embed, embed)
        self.to_query = nn.Linear(embed, query_dim) if query_dim else None
        self.merge = nn.Linear(3 * query_dim, query_dim) if query_dim else None
        for tokens in (self.tokens_a_LMR, self.tokens_b_LRC):
            bound = math.sqrt(6 / sum(tokens.shape[1:]))
            nn.init.uniform_(tokens, -bound, bound)
        if self.merge is not None:
            with torch.no_grad():
                # products of small factors are near zero, and queries that are all alike learn alike for long
                self.merge.bias.zero_()
                self.merge.weight.div_(cast(Tensor, self.queries()).std())

    def forward(self, tokens_BTC: Tensor, layer: int) -> Tensor:
        """Refines the patch tokens after block `layer`; the prefix tokens pass unchanged."""
        feat_BNC = tokens_BTC[:, self.num_prefix :]
        learned_MC = self.tokens_a_LMR[layer] @ self.tokens_b_LRC[layer]
        attention_BNM = (feat_BNC @ learned_MC.mT / math.sqrt(feat_BNC.shape[-1])).softmax(dim=-1)
        # the first token takes attention but gives nothing: a place to look at when nothing fits
        delta_BNC = attention_BNM[..., 1:] @ self.token_to_feature(learned_MC[1:])
        refined_BNC = feat_BNC + self.scale * self.delta(delta_BNC + feat_BNC)
        return torch.cat([tokens_BTC[:, : self.num_prefix], refined_BNC], dim=1)

    def queries(self) -> Tensor | None:
        """The decoder's query embeddings (M, D): maximum and mean over the blocks, and the last block."""
        if self.to_query is None or self.merge is None:
            return None
        learned_LMD = self.to_query(self.tokens_a_LMR @ self.tokens_b_LRC)
        merged_MD3 = torch.stack([learned_LMD.amax(0), learned_LMD.mean(0), learned_LMD[-1]], dim=-1)
        return self.merge(merged_MD3.flatten(1))
