"""Text, tokenizers and token streams."""

from .bpe import BpeTokenizer as BpeTokenizer
from .bpe import train_bpe as train_bpe
from .corpus import Corpus as Corpus
from .corpus import default_corpus as default_corpus
from .corpus import read_corpus as read_corpus
from .documents import Piece as Piece
from .documents import read_pieces as read_pieces
from .load_tokenizer import load_tokenizer as load_tokenizer
from .standard_library import standard_library_text as standard_library_text
from .store import Progress as Progress
from .store import default_cache as default_cache
from .store import tokenize as tokenize
from .streams import Stage as Stage
from .streams import Streams as Streams
from .streams import TokenBlock as TokenBlock
from .streams import stages as stages
from .text import Text as Text
from .text import encode_text as encode_text
from .tokenizer import ByteTokenizer as ByteTokenizer
from .tokenizer import StreamDecoder as StreamDecoder
from .tokenizer import Tokenizer as Tokenizer
from .tokenizer import Tokens as Tokens
