"""The README.md of a shared model: its data, its figures, and how it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..training.options import TrainOptions
from ..training.saving.run import Run

# Options that say where things were and what was logged, and not how the model came to be.
_OF_THE_MACHINE = {
    *("files", "heldout", "out", "resume", "cache", "init_from", "tokenizer", "trackers", "checkpoint_every"),
    *("checkpoint_minutes", "keep", "log_every", "sample_len", "text_field"),
}

_CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [feedback-transformer]
---

# {name}

A Feedback Transformer (Fan et al. 2020, [arXiv 2002.09402](https://arxiv.org/abs/2002.09402)) of {parameters:,}
parameters, trained by `feedback-transformer-pytorch`. Every layer attends to one memory of the last {mem_len} tokens,
made of the states of all layers. The state of a generation has a constant size.

## Use

Install feedback-transformer-pytorch 0.1 with the extra `hf` from its source or a wheel; PyPI has only 0.0.11.

```python
import feedback_transformer_pytorch.hf  # or give trust_remote_code=True below
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
inputs = tokenizer("The ", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=100, do_sample=True)[0]))
```

Behind OpenAI's interface, after `pip install 'transformers[serving]'`:

```
transformers serve {name} --trust-remote-code
```

It is a plain language model and knows no roles. The chat template puts each message of a conversation on a line of its
own, and the answer is what follows; `"stop": "\\n"` ends it with its line.

## Data

{data}

## Figures

{figures}

## Training

{training}
"""


def model_card(run: Run, name: str, parameters: int) -> str:
    """The card of a run's model, in Markdown.

    Args:
        name: what the model is called.
        parameters: how many numbers it has.

    Raises:
        InputError: metrics.jsonl is damaged.
    """
    options = run.options
    return _CARD.format(
        name=name,
        parameters=parameters,
        mem_len=options.mem_len,
        data=_data(run),
        figures=_figures(run.metrics()),
        training=_training(options),
    )


def _data(run: Run) -> str:
    options = run.options
    read = _names(options.files) or "the English text in Python's standard library"
    heldout = _names(options.heldout) or "the end of the training data"
    tokens = "byte pairs (`tokenizer.json`)" if run.numbering.exists() else "bytes of UTF-8"
    return f"- Trained on: {read}\n- Held out: {heldout}\n- Tokens: {tokens}"


def _names(files: list[str]) -> str:
    """The names of files, without the folders of the machine that they were on."""
    return ", ".join(f"`{Path(file).name}`" for file in files)


def _figures(records: list[dict[str, Any]]) -> str:
    """A table of the validations on the held-out data: the first and the last."""
    validations = [record for record in records if record["kind"] == "validation"]
    if not validations:
        return "No validation was made."
    names = [name for name, value in validations[-1].items() if isinstance(value, int | float)]
    chosen = {record["update"]: record for record in (validations[0], validations[-1])}
    lines = ["On the held-out data, at the first and at the last validation:", ""]
    lines += [_row(names), _row("---" for _ in names)]
    lines += [_row(_number(record.get(name, "")) for name in names) for record in chosen.values()]
    return "\n".join(lines)


def _training(options: TrainOptions) -> str:
    """A table of all options that say how the model was made."""
    values: Mapping[str, Any] = {k: v for k, v in options.to_dict().items() if k not in _OF_THE_MACHINE}
    lines = [_row(["option", "value"]), _row(["---", "---"])]
    lines += [_row([f"`{name}`", "none" if value is None else str(value)]) for name, value in values.items()]
    return "\n".join(lines)


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
