"""The structures that the kernel reads, field by field as `source/structures.h` has them; pointers are addresses."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

from torch import Tensor

_Field = tuple[str, type]


def _addresses(names: str) -> list[_Field]:
    return [(name, ctypes.c_void_p) for name in names.split()]


def _numbers(names: str) -> list[_Field]:
    return [(name, ctypes.c_int64) for name in names.split()]


class Layers(ctypes.Structure):
    """One tensor of each layer, and the number at which a segment begins in all of them."""

    _fields_ = [*_addresses("tensors"), *_numbers("offset")]


def point(layers: Layers, tensors: Iterable[Tensor]) -> Any:
    """Points at these tensors, and returns what must live, as they must, for as long as it is used."""
    addresses = [tensor.data_ptr() for tensor in tensors]
    table = (ctypes.c_void_p * len(addresses))(*addresses)
    layers.tensors, layers.offset = ctypes.addressof(table), 0
    return table


def _layers(names: str) -> list[_Field]:
    return [(name, Layers) for name in names.split()]


class PackedLinear(ctypes.Structure):
    _fields_ = [*_addresses("panels bias scales"), *_numbers("inputs outputs streams")]


class NormWeights(ctypes.Structure):
    _fields_ = [*_addresses("weight bias"), ("eps", ctypes.c_double)]


class LayerWeights(ctypes.Structure):
    _fields_ = [
        ("norm_attention", NormWeights),
        ("norm_feedforward", NormWeights),
        *((name, PackedLinear) for name in ("to_q", "to_out", "value", "gate", "from_hidden")),
    ]


class Model(ctypes.Structure):
    _fields_ = [
        *_numbers("threads layers batch groups heads_per_group width dim hidden slots pair_stride"),
        *_addresses("layer_weights"),
        ("to_kv", PackedLinear),
        *_addresses("mix memory_norm position position_t bucket_starts bucket_of"),
        *_numbers("farthest"),
    ]


class SegmentData(ctypes.Structure):
    _fields_ = [
        *_numbers("length local masked_slots"),
        *_addresses("keys values bias has_keys weights"),
        *_layers("q local_kv probabilities out probabilities_mask"),
    ]


class Forward(ctypes.Structure):
    _fields_ = [
        ("segment", SegmentData),
        *_layers("states middle hidden hidden_mask"),
        *_addresses("new_keys new_values normed product kv"),
    ]


class Backward(ctypes.Structure):
    _fields_ = [
        ("segment", SegmentData),
        *_addresses("grad_top"),
        *_layers("grad_states grad_middle states middle mean_a rstd_a mean_f rstd_f hidden hidden_mask product"),
        *_layers("grad_hidden grad_normed_f grad_normed_a grad_q grad_local grad_scores grad_products"),
        *_addresses("mixed mixed_mean mixed_rstd grad_mixed grad_kv total"),
        *_numbers("total_stride"),
        *_addresses("grad_scores_band operands"),
        *_numbers("place places columns"),
        *_addresses("grad_bias"),
        *_numbers("grad_bias_stride"),
        *_addresses("grad_middle_whole grad_out"),
    ]
