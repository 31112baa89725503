"""Text, tokenizers and token streams."""

from .compression import xz_bits_per_byte as xz_bits_per_byte
from .standard_library import standard_library_text as standard_library_text
from .streams import Block as Block
from .streams import Streams as Streams
from .streams import consecutive_blocks as consecutive_blocks
from .text import Corpus as Corpus
from .text import default_corpus as default_corpus
from .text import read_corpus as read_corpus
from .text import read_text as read_text
from .tokenizer import ByteTokenizer as ByteTokenizer
from .tokenizer import StreamDecoder as StreamDecoder
from .tokenizer import Tokenizer as Tokenizer
