"""The modules of a layer: sub-layers that own their parameters, each a function of states."""

from .attention import Attention as Attention
from .attention import dropout_mask as dropout_mask
from .cross_attention import ContextKeysValues as ContextKeysValues
from .cross_attention import CrossAttention as CrossAttention
from .feedforward import FeedForward as FeedForward
from .initialisation import scale_last_linears as scale_last_linears
from .span import AdaptiveSpan as AdaptiveSpan
from .sublayer import ContextView as ContextView
from .sublayer import MemoryView as MemoryView
from .sublayer import Sublayer as Sublayer
