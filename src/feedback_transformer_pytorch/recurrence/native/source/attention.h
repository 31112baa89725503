// Attention of a segment's queries to its window and, if it has several tokens, to its local keys.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "elementwise.h"
#include "position.h"
#include "row_products.h"
#include "structures.h"
#include "team.h"

namespace {

// The offsets of a query. A pair is a batch row and a key/value head.
template <class Real> struct QueryOffsets {
    Index row, head;  // in tensors (R, H*E) and (BG, Q)

    QueryOffsets(const Model<Real>& model, Index length, Index pair, Index query) {
        const Index b = pair / model.groups, g = pair % model.groups;
        const Index token = query % length, in_group = query / length;
        row = (b * length + token) * model.inner() + (g * model.heads_per_group + in_group) * model.width;
        head = pair * model.heads_per_group * length + query;
    }
};

// Replaces each score by e^(score - top) and returns the sum.
template <class Real> Real exponentiate(Real* scores, Index count, Real top) {
    Real total = 0;
#pragma omp simd reduction(+ : total)
    for (Index j = 0; j < count; ++j) {
        scores[j] = exponential(scores[j] - top);
        total += scores[j];
    }
    return total;
}

// Attention of all queries of a pair. `weights` (n + local,) is a workspace.
template <class Stored, class Real, int Vectors>
void attend(const Model<Real>& model, const SegmentData<Real>& segment, Index layer, Index pair, Real* weights) {
    const Index width = model.width, slots = model.slots, local = segment.local, columns = slots + local;
    const Index masked = segment.masked_slots, seen = slots - masked, all = seen + local;
    const Stored* keys = static_cast<const Stored*>(segment.keys) + pair * model.pair_stride + masked * width;
    const Stored* values = static_cast<const Stored*>(segment.values) + pair * model.pair_stride + masked * width;
    const Index group = pair % model.groups, first_row = pair / model.groups * segment.length;
    const Real* local_keys = local ? segment.local_kv[layer] + first_row * model.kv() + group * width : nullptr;
    for (Index query = 0; query < model.heads_per_group * segment.length; ++query) {
        const QueryOffsets<Real> offsets(model, segment.length, pair, query);
        const Real* q = segment.q[layer] + offsets.row;
        Real* p = segment.probabilities[layer] + offsets.head * columns;
        std::fill_n(p, masked, Real(0));
        Real* scores = p + masked;
        dot_products<Real, Vectors>(q, keys, width, seen, width, scores, query ? nullptr : values);
        if (local) dot_products<Real, Vectors>(q, local_keys, model.kv(), local, width, scores + seen);
        if (model.position) add_position(model, q, slots + query % segment.length, masked, columns, p);
        if (segment.bias) {
            const Real* bias = segment.bias + offsets.head * columns + masked;
#pragma omp simd
            for (Index j = 0; j < all; ++j) scores[j] += bias[j];
        }
        Real top = -HUGE_VAL;
#pragma omp simd reduction(max : top)
        for (Index j = 0; j < all; ++j) top = scores[j] > top ? scores[j] : top;
        const Real scale = 1 / exponentiate(scores, all, top);
        const Real* mask = segment.probabilities_mask[layer];
        if (mask) mask += offsets.head * columns + masked;
        for (Index j = 0; j < all; ++j) scores[j] *= scale;
        if (mask) {
            for (Index j = 0; j < all; ++j) weights[j] = scores[j] * mask[j];
        }
        const Real* used = mask ? weights : scores;
        Real* out = segment.out[layer] + offsets.row;
        std::fill_n(out, width, Real(0));
        weighted_sum<Real, Vectors>(used, 1, values, width, seen, width, out,
                                    query ? nullptr : keys + model.pair_stride);
        if (local) {
            weighted_sum<Real, Vectors>(used + seen, 1, local_keys + model.groups * width, model.kv(), local, width,
                                        out);
        }
    }
}

// The backward pass of `attend`. It also writes the band and the operands, which the gradients of the memory's keys and
// values are computed from.
template <class Stored, class Real, int Vectors>
void attend_backward(const Team& team, const Model<Real>& model, const Backward<Real>& step, Index layer, Index pair,
                     Real* weights) {
    const SegmentData<Real>& segment = step.segment;
    const Index width = model.width, slots = model.slots, local = segment.local, columns = slots + local;
    const Index masked = segment.masked_slots, seen = slots - masked, all = seen + local;
    const Index queries = model.heads_per_group * segment.length;
    const Stored* keys = static_cast<const Stored*>(segment.keys) + pair * model.pair_stride + masked * width;
    const Stored* values = static_cast<const Stored*>(segment.values) + pair * model.pair_stride + masked * width;
    const Index group = pair % model.groups, first_row = pair / model.groups * segment.length;
    const Index local_offset = first_row * model.kv() + group * width, local_values = model.groups * width;
    const Real* local_keys = local ? segment.local_kv[layer] + local_offset : nullptr;
    Real* grad_local = local ? step.grad_local[layer] + local_offset : nullptr;
    for (Index j = 0; j < local; ++j) {
        std::fill_n(grad_local + j * model.kv(), width, Real(0));
        std::fill_n(grad_local + j * model.kv() + local_values, width, Real(0));
    }
    for (Index query = 0; query < queries; ++query) {
        const QueryOffsets<Real> offsets(model, segment.length, pair, query);
        const Real *q = segment.q[layer] + offsets.row, *grad = step.grad_out + offsets.row;
        const Real* p = segment.probabilities[layer] + offsets.head * columns + masked;
        const Real* mask = segment.probabilities_mask[layer];
        if (mask) mask += offsets.head * columns + masked;
        Real* scores = step.grad_scores[layer] + offsets.head * columns;
        std::fill_n(scores, masked, Real(0));
        scores += masked;
        dot_products<Real, Vectors>(grad, values, width, seen, width, scores, query ? nullptr : keys);
        if (local) {
            dot_products<Real, Vectors>(grad, local_keys + local_values, model.kv(), local, width, scores + seen);
        }
        for (Index j = 0; j < all; ++j) {
            weights[j] = mask ? p[j] * mask[j] : p[j];
            if (mask) scores[j] *= mask[j];
        }
        Real along = 0;
#pragma omp simd reduction(+ : along)
        for (Index j = 0; j < all; ++j) along += scores[j] * p[j];
        // Not p * score - p * along: where one p is 1, the two are the same but for rounding.
#pragma omp simd
        for (Index j = 0; j < all; ++j) scores[j] = (scores[j] - along) * p[j];
        if (step.grad_bias) {
            Real* to =
                step.grad_bias + team.thread * step.grad_bias_stride + (group * queries + query) * columns + masked;
#pragma omp simd
            for (Index j = 0; j < all; ++j) to[j] += scores[j];
        }
        Real* grad_q = step.grad_q[layer] + offsets.row;
        std::fill_n(grad_q, width, Real(0));
        weighted_sum<Real, Vectors>(scores, 1, keys, width, seen, width, grad_q,
                                    query ? nullptr : values + model.pair_stride);
        if (local) weighted_sum<Real, Vectors>(scores + seen, 1, local_keys, model.kv(), local, width, grad_q);
        if (model.position) {
            Real* products = step.grad_products[layer] + offsets.row / width * kBuckets;
            position_backward(model, slots + query % segment.length, masked, columns, scores - masked, products);
            weighted_sum<Real, Vectors>(products, 1, model.position, width, kBuckets, width, grad_q);
        }
        for (Index j = 0; j < local; ++j) {
            Real* to = grad_local + j * model.kv();
            weighted_sum<Real, Vectors>(scores + seen + j, 1, q, width, 1, width, to);
            weighted_sum<Real, Vectors>(weights + seen + j, 1, grad, width, 1, width, to + local_values);
        }
        // The keys' and the values' half of the band and of the operands.
        const Index line = ((pair * step.places + step.place) * model.layers + layer) * queries + query;
        const Index half = model.pairs() * step.places * model.layers * queries;
        Real* band = step.grad_scores_band + line * step.columns + step.place * segment.length;
        std::fill_n(band, masked, Real(0));
        std::copy_n(scores, seen, band + masked);
        band += half * step.columns;
        std::fill_n(band, masked, Real(0));
        std::copy_n(weights, seen, band + masked);
        std::copy_n(q, width, step.operands + line * width);
        std::copy_n(grad, width, step.operands + (half + line) * width);
    }
}

}  // namespace
