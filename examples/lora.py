"""LoRA: trains adapters for the model of a RUN on one sentence, then saves, loads and merges them. Needs `peft`."""

import argparse
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from feedback_transformer_pytorch.hf import FeedbackTransformerForCausalLM

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("run", nargs="?", default="run", help="a RUN directory, such as train_on_files.py makes")
parser.add_argument("--out", default="adapted", help="where to save the adapters and the merged model")
parser.add_argument("--updates", type=int, default=40)
arguments = parser.parse_args()
adapters, merged = Path(arguments.out, "adapters"), Path(arguments.out, "merged")

text = torch.tensor([list(b"Every layer of a token sees the top of the token before it. ")])
base = FeedbackTransformerForCausalLM.from_pretrained(arguments.run)
# to_kv is the one projection that all layers and the memory share; it is adapted once.
model = get_peft_model(base, LoraConfig(r=8, target_modules=["to_q", "to_kv", "to_out"], task_type="CAUSAL_LM"))
model.print_trainable_parameters()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
for update in range(1, arguments.updates + 1):
    loss = model(input_ids=text, labels=text, use_cache=False).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if update % 10 == 0 or update == arguments.updates:
        print(f"update {update}: loss {loss:.3f}")
model.save_pretrained(adapters, save_embedding_layers=False)  # which peft looks for on the Hub otherwise

base = FeedbackTransformerForCausalLM.from_pretrained(arguments.run)
PeftModel.from_pretrained(base, adapters).merge_and_unload().save_pretrained(merged)
plain = FeedbackTransformerForCausalLM.from_pretrained(merged)  # needs no peft
torch.testing.assert_close(plain(text).logits, model.eval()(input_ids=text).logits, atol=1e-3, rtol=1e-3)
print(bytes(plain.generate(text[:, :6], max_new_tokens=40, do_sample=False)[0].tolist()).decode(errors="replace"))
