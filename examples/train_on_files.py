"""Trains a model on text files, then generates text. Other examples start from its RUN directory."""

import argparse

from feedback_transformer_pytorch.training.commands import write_text
from feedback_transformer_pytorch.training.loop import train
from feedback_transformer_pytorch.training.options import GenerateOptions, TrainOptions

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("files", nargs="*", help="text files; none: the English text in Python's standard library")
parser.add_argument("--out", default="run", help="the RUN directory")
parser.add_argument("--updates", type=int, default=300)
arguments = parser.parse_args()

# As `feedback-transformer train FILES --out RUN ...`; run again, it goes on where it stopped.
options = TrainOptions(
    files=arguments.files,
    out=arguments.out,
    dim=64,
    depth=2,
    heads=2,
    dim_head=32,
    mem_len=64,
    seq_len=4,
    block_len=64,
    batch_size=16,
    dropout=0.0,
    max_updates=arguments.updates,
    eval_every=arguments.updates,
    eval_len=8192,
)
train(options)

# As `feedback-transformer generate RUN --prompt "The "`.
for piece in write_text(GenerateOptions(run=arguments.out, prompt="The ", max_new_tokens=200, temperature=0.7)):
    print(piece, end="")
print()
