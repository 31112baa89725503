// The structures that Python hands over. `structures.py` declares the same fields in the same order. The axis letters
// are those of docs/design.md, and C is the number of segments of a strip. What is "written" is a result.

#pragma once

#include <cstdint>

#include "numbers.h"

namespace {

// One tensor of each layer, and the offset at which a segment begins in each of them.
template <class Real> struct Layers {
    Real* const* tensors;
    Index offset;

    Real* operator[](Index layer) const { return tensors ? tensors[layer] + offset : nullptr; }
};

// A weight (out, in) packed in panels (ceil(out / panel), in, panel), or in panels of pairs (ceil(out / panel),
// ceil(in / 2), panel), and its bias (out,) or null. A weight that comes from memory is read in several streams: with a
// single one, a core prefetches from too few pages at a time to use the memory's bandwidth.
template <class Real> struct PackedLinear {
    const void* panels;
    const Real* bias;
    const Real* scales;  // (out,), what products are multiplied with before the bias is added; or null
    Index inputs, outputs, streams;
};

template <class Real> struct NormWeights {
    const Real* weight;
    const Real* bias;
    double eps;
};

// The weights of a layer. In the forward pass `value` and `gate` are the halves of the feed-forward's first Linear. In
// the backward pass all weights are transposed, `value` is the whole Linear, and `gate` is unused.
template <class Real> struct LayerWeights {
    NormWeights<Real> norm_attention, norm_feedforward;
    PackedLinear<Real> to_q, to_out, value, gate, from_hidden;
};

template <class Real> struct Model {
    Index threads, layers, batch, groups, heads_per_group, width, dim, hidden;  // G, H/G, E, D, F
    Index slots, pair_stride;          // n; in a buffer of keys or values, from a batch row and group to the next
    const LayerWeights<Real>* layer_weights;  // (L,)
    PackedLinear<Real> to_kv;
    const Real* mix;                       // (L+1,), or null to store the top state
    const NormWeights<Real>* memory_norm;  // or null
    const Real *position, *position_t;     // the table of "relative", (buckets, E) and (E, buckets); or null
    const Index* bucket_starts;            // (buckets + 1,), the first distance of each; the last is infinite
    const int32_t* bucket_of;              // the buckets of distances `farthest`, `farthest` - 1, ...; 0 below zero
    Index farthest;

    Index inner() const { return groups * heads_per_group * width; }  // H*E
    Index pairs() const { return batch * groups; }                    // BG
    Index kv() const { return 2 * groups * width; }                   // 2*G*E
};

// What both directions need to know of a segment. It has R = batch * length rows.
template <class Real> struct SegmentData {
    Index length, local, masked_slots;  // local: how many keys the segment itself has, 0 or its length
    const void *keys, *values;          // its window, (BG, n, E), of type Stored<Weight>
    const Real* bias;                   // (BG, Q, n + local), or null for none
    const uint8_t* has_keys;            // (R,) or null
    Real* weights;                      // workspace: (threads, n + local)
    Layers<Real> q, local_kv, probabilities, out;
    Layers<const Real> probabilities_mask;
};

template <class Real> struct Forward {
    SegmentData<Real> segment;
    Layers<Real> states, middle, hidden;
    Layers<const Real> hidden_mask;
    void *new_keys, *new_values;  // (BG, S, E), the segment's slots, written
    Real *normed, *product, *kv;  // workspace: (R, D), (R, max(D, F)), (R, 2*G*E)
};

template <class Real> struct Backward {
    SegmentData<Real> segment;
    const Real* grad_top;                               // (R, D)
    Layers<Real> grad_states, grad_middle;              // (L+1, R, D), (L, R, D), written
    Layers<const Real> states, middle;                  // the inputs of the norms, (R, D)
    Layers<const Real> mean_a, rstd_a, mean_f, rstd_f;  // (R,)
    Layers<const Real> hidden, hidden_mask;             // (R, 2*F), (R, F)
    Layers<Real> product;                               // (R, F), the output of the GEGLU, recomputed, written
    Layers<Real> grad_hidden, grad_normed_f, grad_normed_a, grad_q, grad_local, grad_scores;  // written
    Layers<Real> grad_products;                   // (R, H * buckets), of the products with `position`, written
    const Real *mixed, *mixed_mean, *mixed_rstd;  // the input of the memory's norm and its statistics, or null
    Real *grad_mixed, *grad_kv;                   // (R, D), (R, 2*G*E), written
    Real* total;                                  // (2, BG, S, E), gradients from outside and from later strips
    Index total_stride;                           // from the keys to the values
    Real *grad_scores_band, *operands;            // of the strip, (2, BG, C, L, Q, columns) and (2, BG, C, L, Q, E)
    Index place, places, columns;                 // the segment's number in its strip; C; the columns of the band
    Real* grad_bias;                              // (threads, H, S, n + local), added to; or null
    Index grad_bias_stride;                       // from a thread to the next
    Real *grad_middle_whole, *grad_out;           // workspace: (R, D), (R, H*E)
};

}  // namespace
