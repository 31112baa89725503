"""A training loop of your own: the model reads a text block by block, carries its memory, then continues the text."""

import argparse
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F

from feedback_transformer_pytorch import FeedbackTransformer, generate

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--updates", type=int, default=300)
updates = parser.parse_args().updates

ROWS, BLOCK = 16, 32
text = torch.tensor(list("\n".join(topics.values()).encode()))  # Python's own manual, as bytes
streams = text[: len(text) // ROWS * ROWS].view(ROWS, -1)  # 16 parts of it, read side by side

model = FeedbackTransformer(
    num_tokens=256, dim=128, depth=2, seq_len=1, mem_len=64, heads=4, dim_head=32,
    position="relative", memory_norm="plain",
)  # fmt: skip
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.99))
memory = None
for update, start in enumerate(range(0, streams.shape[1] - BLOCK, BLOCK)[:updates], 1):
    block = streams[:, start : start + BLOCK + 1]
    logits, memory = model(block[:, :-1], memory, return_memory=True)
    memory = memory.detach()  # the next block sees this memory, and gradients end here
    loss = F.cross_entropy(logits.flatten(0, 1), block[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    if update % 50 == 0 or update == updates:
        print(f"update {update}: {loss / torch.log(torch.tensor(2.0)):.2f} bits per byte")

# The first part, where training stopped reading it: the memory holds what precedes its next byte.
model.eval()
written = generate(
    model, block[:1, -1:], max_new_tokens=200, temperature=0.7, memory=memory.select(torch.tensor([0]))
)  # fmt: skip
print(bytes(int(token) for token in written).decode(errors="replace"))
