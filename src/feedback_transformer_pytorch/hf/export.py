"""A RUN as a folder to share."""

from __future__ import annotations

from pathlib import Path

from ..files import begin_directory, beside, check_vacant, finish_directory, writing
from .from_run import config_and_weights, open_text_run
from .model_card import model_card
from .modeling import FeedbackTransformerForCausalLM
from .tokenizer import tokenizer_of


def export_run(run: str | Path, to: str | Path) -> None:
    """Writes the model of a RUN as `transformers` loads it: weights, configuration, tokenizer, and a model card.

    Args:
        run: a RUN directory that `feedback-transformer train` made on text.
        to: the folder; it may exist, if it is empty.

    Raises:
        InputError: the RUN cannot be used, or the folder holds something or cannot be written.
    """
    source, folder = open_text_run(run), Path(to).resolve()
    check_vacant(folder)
    config, weights = config_and_weights(source)
    model = FeedbackTransformerForCausalLM.from_pretrained(None, config=config, state_dict=weights)
    card = model_card(source, folder.name, model.num_parameters())
    begin_directory(folder)
    with writing(folder):
        model.save_pretrained(beside(folder))
        tokenizer_of(source).save_pretrained(beside(folder))
        (beside(folder) / "README.md").write_text(card, encoding="utf-8")
    finish_directory(folder)
