"""Our tokenizers as tokenizers of `transformers`."""

from __future__ import annotations

import tokenizers
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ..data.bpe import character_of_byte
from ..training.saving.run import Run

# A plain language model knows no roles. A conversation is its messages, each on a line of its own, and the answer is
# what the model writes on the next line.
CHAT_TEMPLATE = (
    r"{{ messages | map(attribute='content') | join('\n') }}{% if add_generation_prompt %}{{ '\n' }}{% endif %}"
)


def tokenizer_of(run: Run) -> PreTrainedTokenizerFast:
    """The tokenizer of a run on text.

    Raises:
        InputError: its file is missing or damaged.
    """
    content = run.tokenizer().to_json()
    return byte_tokenizer() if content is None else as_pretrained(tokenizers.Tokenizer.from_str(content))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer whose 256 tokens are the bytes of the text, in UTF-8: token n is byte n.

    Its padding is the byte 0. The attention mask says where it is padding; decoding without special tokens drops it.
    """
    vocabulary = {character_of_byte(byte): byte for byte in range(256)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return as_pretrained(backend)


def as_pretrained(backend: tokenizers.Tokenizer) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that encodes as in training, decodes exactly, and pads on the left.

    It has the chat template of a plain language model. As in training, it puts nothing around a text. Its padding is
    its first special token, or else the byte 0.
    """
    backend.post_processor = None
    special = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=special[0] if special else character_of_byte(0),
        padding_side="left",
        split_special_tokens=not special,  # in a text, the character of the byte 0 is a character like others
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        chat_template=CHAT_TEMPLATE,
    )
