"""slowfast/models/reversible_mvit.py: blocks whose inputs are computed again from their outputs in the backward.

The attention layer runs three times for one gradient: without a graph, then inside the backward with one, under the
random state of the first time, and by a `backward` within the backward. Between two stages a block of the usual kind
pools the residual with the attention layer's own `pool_q` and `norm_q`, which it finds by their names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import Function

from . import eager


class AttentionSubBlock(nn.Module):
    def __init__(self, attention: nn.Module, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.attn = attention
        self.thw: list[int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.attn(self.norm(x), self.thw)
        return out


class MlpSubBlock(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class ReversibleBlock(nn.Module):
    """y1 = x1 + F(x2), y2 = x2 + G(y1)."""

    def __init__(self, attention: nn.Module, width: int) -> None:
        super().__init__()
        self.F, self.G = AttentionSubBlock(attention, width), MlpSubBlock(width)
        self.seed = 0

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        self.seed = int(torch.randint(2**31, ()))
        torch.manual_seed(self.seed)
        y1 = x1 + self.F(x2)
        return y1, x2 + self.G(y1)

    def backward_pass(self, y1: Tensor, y2: Tensor, d1: Tensor, d2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The inputs, and their gradients; those of the parameters are added to `.grad`."""
        with torch.enable_grad():
            y1.requires_grad = True
            g = self.G(y1)
            g.backward(d2, retain_graph=True)
        with torch.no_grad():
            x2 = y2 - g
            d1 = d1 + y1.grad
            y1.grad = None
        with torch.enable_grad():
            x2.requires_grad = True
            torch.manual_seed(self.seed)
            f = self.F(x2)
            f.backward(d1, retain_graph=True)
        with torch.no_grad():
            x1 = y1 - f
            d2 = d2 + x2.grad
            x2.grad = None
        return x1.detach(), x2.detach(), d1, d2


class RevBackProp(Function):
    """A row of reversible blocks of which only the last outputs are kept."""

    @staticmethod
    def forward(ctx, x, blocks):
        x1, x2 = torch.chunk(x, 2, dim=-1)
        for block in blocks:
            x1, x2 = block(x1, x2)
        ctx.blocks = blocks
        ctx.save_for_backward(x1.detach(), x2.detach())
        return torch.cat((x1, x2), dim=-1)

    @staticmethod
    def backward(ctx, grad):
        d1, d2 = torch.chunk(grad, 2, dim=-1)
        y1, y2 = ctx.saved_tensors
        for block in reversed(ctx.blocks):
            y1, y2, d1, d2 = block.backward_pass(y1, y2, d1, d2)
        return torch.cat((d1, d2), dim=-1), None


class StageTransitionBlock(nn.Module):
    """Makes one stream of two, pools it and widens it."""

    def __init__(self, attention: nn.Module, width: int, width_out: int) -> None:
        super().__init__()
        self.F, self.G = AttentionSubBlock(attention, width), MlpSubBlock(width_out)
        self.res_proj = nn.Linear(width, width_out)

    def pooled_residual(self, x: Tensor) -> Tensor:
        attn = self.F.attn
        if attn.pool_q is None or max(attn.pool_q.stride) == 1:
            return x
        folded = eager.heads(x, attn.num_heads)
        pooled, _ = eager.pool(folded, attn.pool_q, attn.norm_q, self.F.thw, attn.has_cls_embed)
        return eager.merge(pooled)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = torch.chunk(x, 2, dim=-1)
        x = (x1 + x2) / 2
        x = self.pooled_residual(self.res_proj(x)) + self.F(x)
        x = x + self.G(x)
        return torch.cat((x, x), dim=-1)


class ReversibleMViT(nn.Module):
    """Two stages of reversible blocks on tokens (B, T*H*W, C); `remember` runs them as autograd would."""

    def __init__(self, layer: type[nn.Module], drop_rate: float = 0.0) -> None:
        super().__init__()
        options = {"qkv_bias": True, "has_cls_embed": False, "drop_rate": drop_rate, "residual_pooling": True}
        options |= {"rel_pos_spatial": True, "rel_pos_temporal": True, "kernel_q": (3, 3, 3), "kernel_kv": (3, 3, 3)}

        def attention(width: int, width_out: int, heads: int, size: int, stride_q: int, stride_kv: int) -> nn.Module:
            strides = {"stride_q": (1, stride_q, stride_q), "stride_kv": (1, stride_kv, stride_kv)}
            return layer(width, width_out, (2, size, size), num_heads=heads, **strides, **options)

        self.first = nn.ModuleList(ReversibleBlock(attention(16, 16, 1, 8, 1, 4), 16) for _ in range(2))
        self.transition = StageTransitionBlock(attention(16, 32, 2, 8, 2, 2), 16, 32)
        self.second = nn.ModuleList(ReversibleBlock(attention(32, 32, 2, 4, 1, 2), 32) for _ in range(2))
        for block in (*self.first, self.transition):
            block.F.thw = [2, 8, 8]
        for block in self.second:
            block.F.thw = [2, 4, 4]
        self.remember = False

    def stage(self, x: Tensor, blocks: nn.ModuleList) -> Tensor:
        if not self.remember:
            return RevBackProp.apply(x, blocks)
        x1, x2 = torch.chunk(x, 2, dim=-1)
        for block in blocks:
            x1, x2 = block(x1, x2)
        return torch.cat((x1, x2), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage(torch.cat((x, x), dim=-1), self.first)
        return self.stage(self.transition(x), self.second)
