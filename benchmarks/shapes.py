"""What is measured: named shapes, and a series over T."""

from __future__ import annotations

from dataclasses import dataclass

from feedback_transformer_pytorch import FeedbackConfig


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model and its batch."""

    name: str
    batch: int
    time: int
    mem_len: int
    seq_len: int = 1
    num_tokens: int = 256
    depth: int = 6
    dim: int = 512
    heads: int = 8
    dim_head: int = 64
    kv_heads: int | None = None

    def __str__(self) -> str:
        return f"B {self.batch}, T {self.time}, M {self.mem_len}, L {self.depth}, D {self.dim}"

    @property
    def config(self) -> FeedbackConfig:
        return FeedbackConfig(
            num_tokens=self.num_tokens,
            dim=self.dim,
            depth=self.depth,
            mem_len=self.mem_len,
            seq_len=self.seq_len,
            heads=self.heads,
            dim_head=self.dim_head,
            kv_heads=self.kv_heads,
        )


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(name="a", batch=2, time=64, mem_len=256, seq_len=2, num_tokens=20_000),  # 0.0.11's own example
        Shape(name="b", batch=8, time=256, mem_len=256),
        Shape(name="c", batch=32, time=128, mem_len=128),
        Shape(name="d", batch=64, time=64, mem_len=100, depth=4, dim=256, heads=4),  # the paper's algorithmic task
        Shape(name="e", batch=16, time=128, mem_len=64, depth=4, dim=128, heads=4),
        Shape(name="b-one-kv-head", batch=8, time=256, mem_len=256, kv_heads=1),
        Shape(name="large", batch=128, time=256, mem_len=256),
        Shape(
            name="tiny", batch=2, time=16, mem_len=16, num_tokens=50, depth=2, dim=32, heads=2, dim_head=16
        ),  # a check
    )
}

SCALING = {
    shape.name: shape
    for shape in (Shape(name=f"T {time}", batch=8, time=time, mem_len=128) for time in (64, 128, 256, 512, 1024))
}
