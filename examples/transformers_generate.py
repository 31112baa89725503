"""A RUN in Hugging Face's transformers: exports it, loads it with the Auto classes, and generates text."""

import argparse
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from feedback_transformer_pytorch.hf import FeedbackCache, export_run

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("run", nargs="?", default="run", help="a RUN directory, such as train_on_files.py makes")
parser.add_argument(
    "--to", default="shared", help="directory of the exported model; it is written if it does not exist"
)
arguments = parser.parse_args()

if not Path(arguments.to).exists():
    export_run(arguments.run, arguments.to)  # as `feedback-transformer export RUN --to DIR`
model = AutoModelForCausalLM.from_pretrained(arguments.to)
tokenizer = AutoTokenizer.from_pretrained(arguments.to)

# Prompts of different lengths in one batch: padding never enters the memory.
inputs = tokenizer(["The ", "If the file is "], return_tensors="pt", padding=True)
texts = model.generate(**inputs, max_new_tokens=60, do_sample=True, temperature=0.7)
print(*tokenizer.batch_decode(texts, skip_special_tokens=True), sep="\n---\n")

# A text that goes on: the cache is the memory, of the same size however long the text becomes.
cache = FeedbackCache()
text = tokenizer("The ", return_tensors="pt")["input_ids"]
for _ in range(3):
    text = model.generate(text, past_key_values=cache, max_new_tokens=30, do_sample=True, temperature=0.7)
print("---", tokenizer.decode(text[0]), f"({cache.get_seq_length()} tokens read)", sep="\n")

writer = pipeline("text-generation", model=model, tokenizer=tokenizer)
print("---", writer("The ", max_new_tokens=60, do_sample=False)[0]["generated_text"], sep="\n")
