"""Control of the memory: carry, reset, save and load it; padding and a context. An assertion checks each rule."""

import tempfile
from pathlib import Path

import torch
from torch.testing import assert_close

from feedback_transformer_pytorch import FeedbackTransformer, generate, load_state, save_state

torch.set_grad_enabled(False)
size = {"num_tokens": 256, "dim": 32, "depth": 2, "seq_len": 4, "mem_len": 16, "heads": 2, "dim_head": 16}
model = FeedbackTransformer(**size, position="relative", memory_norm="plain").eval()  # the rules hold for all weights
x = torch.randint(0, 256, (2, 24))
logits = model(x)

# Carry: a text in two calls is one text, if the first ends with a segment (16 = 4 * seq_len).
first, memory = model(x[:, :16], return_memory=True)
assert_close(torch.cat([first, model(x[:, 16:], memory)], dim=1), logits)

# Mask: padding, wherever it is, is as if it were not there.
mask = torch.ones(2, 24, dtype=torch.bool)
mask[1, :10] = False
assert_close(model(x, mask=mask)[1:, 10:], model(x[1:, 10:]))

# Reset: a document starts here and sees nothing of the one before it; where it starts may differ from row to row.
reset = torch.zeros(2, 24, dtype=torch.bool)
reset[0, 9] = reset[1, 14] = True
assert_close(model(x, reset=reset)[0, 9:], model(x[:1, 9:])[0])

# Save and load: a generation goes on from a file of constant size, bit for bit.
with tempfile.TemporaryDirectory() as folder:
    whole = list(generate(model, x, max_new_tokens=30, temperature=0))
    start = generate(model, x, max_new_tokens=20, temperature=0)
    tokens = list(start)
    save_state(Path(folder) / "state", start.state, model)
    state = load_state(Path(folder) / "state", model)
tokens += generate(model, max_new_tokens=10, temperature=0, state=state)
assert torch.equal(torch.stack(tokens), torch.stack(whole))

# Context: every layer also attends to vectors of your own, such as an encoder's; their mask says which are real.
reader = FeedbackTransformer(**size, context_dim=8).eval()
context = torch.randn(2, 5, 8)
seen = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
answer = reader(x, context=context, context_mask=seen)
assert_close(answer[1:], reader(x[1:], context=context[1:, :3]))
print("all of it holds")
