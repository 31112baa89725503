// The forward pass of a segment. Threads divide each phase by panels of a weight, by rows, or by pairs of batch row and
// key/value head, and wait for each other at its end.

#pragma once

#include <algorithm>

#include "attention.h"
#include "elementwise.h"
#include "norm.h"
#include "packed_products.h"
#include "structures.h"
#include "team.h"

namespace {

// Walks a segment through all layers, and stores its keys and values in the memory, whose numbers are of type Number.
template <class Weight, class Number, class Real>
void forward(const Team& team, const Model<Real>& model, const Forward<Real>& step) {
    const SegmentData<Real>& segment = step.segment;
    const Index dim = model.dim, rows = model.batch * segment.length, hidden = model.hidden;
    Real* weights = segment.weights + team.thread * (model.slots + segment.local);
    for (Index layer = 0; layer < model.layers; ++layer) {
        const LayerWeights<Real>& layer_weights = model.layer_weights[layer];
        const Real* below = step.states[layer];
        norm(team, layer_weights.norm_attention, below, rows, dim, step.normed);
        team.barrier();
        product_to<Weight>(team, step.normed, rows, layer_weights.to_q, segment.q[layer]);
        if (segment.local) product_to<Weight>(team, step.normed, rows, model.to_kv, segment.local_kv[layer]);
        team.barrier();
        const auto [begin, end] = team.share(model.pairs());
        with_vectors<Number, Real>(model.width, [&, begin = begin, end = end](auto vectors) {
            for (Index pair = begin; pair < end; ++pair) {
                attend<Number, Real, decltype(vectors)::value>(model, segment, layer, pair, weights);
            }
        });
        team.barrier();
        Real* middle = step.middle[layer];
        product<Weight, Real, 1>(team, segment.out[layer], rows, {layer_weights.to_out},
                                 [&](Index row, Index column, Index count, auto& results) {
            const bool has_keys = !segment.has_keys || segment.has_keys[row];
            const Index first = row * dim + column;
            for (Index i = 0; i < count; ++i) middle[first + i] = below[first + i] + (has_keys ? results[0][i] : 0);
        });
        team.barrier();
        norm(team, layer_weights.norm_feedforward, middle, rows, dim, step.normed);
        team.barrier();
        Real* gated = step.hidden[layer];
        const Real* mask = step.hidden_mask[layer];
        product<Weight, Real, 2>(team, step.normed, rows, {layer_weights.value, layer_weights.gate},
                                 [&](Index row, Index column, Index count, auto& results) {
            const Index first = row * hidden + column;
            std::copy_n(results[0], count, gated + row * 2 * hidden + column);
            std::copy_n(results[1], count, gated + row * 2 * hidden + hidden + column);
            Real *value = results[0], *gate = results[1], *to = step.product + first;
#pragma omp simd
            for (Index i = 0; i < count; ++i) to[i] = normal_cdf(gate[i]) * gate[i] * value[i];
            if (mask) {
                for (Index i = 0; i < count; ++i) to[i] *= mask[first + i];
            }
        });
        team.barrier();
        Real* above = step.states[layer + 1];
        product<Weight, Real, 1>(team, step.product, rows, {layer_weights.from_hidden},
                                 [&](Index row, Index column, Index count, auto& results) {
            const Index first = row * dim + column;
            for (Index i = 0; i < count; ++i) above[first + i] = middle[first + i] + results[0][i];
        });
        team.barrier();
    }
    const Real* stored = step.states[model.layers];
    if (model.mix) {
        const auto [begin, end] = team.share(rows * dim);
        std::fill(step.normed + begin, step.normed + end, Real(0));
        for (Index layer = 0; layer <= model.layers; ++layer) {
            const Real *state = step.states[layer], weight = model.mix[layer];
            for (Index i = begin; i < end; ++i) step.normed[i] += weight * state[i];
        }
        stored = step.normed;
        team.barrier();
    }
    if (model.memory_norm) {
        norm(team, *model.memory_norm, stored, rows, dim, step.product);
        stored = step.product;
        team.barrier();
    }
    product_to<Weight>(team, stored, rows, model.to_kv, step.kv);
    team.barrier();
    const auto [begin, end] = team.share(rows);
    for (Index row = begin; row < end; ++row) {
        for (Index group = 0; group < model.groups; ++group) {
            const Index pair = row / segment.length * model.groups + group;
            const Index slot = pair * model.pair_stride + row % segment.length * model.width;
            const Real* from = step.kv + row * model.kv() + group * model.width;
            auto* keys = static_cast<Number*>(step.new_keys) + slot;
            auto* values = static_cast<Number*>(step.new_values) + slot;
            for (Index e = 0; e < model.width; ++e) {
                round_to(keys[e], from[e]);
                round_to(values[e], from[model.groups * model.width + e]);
            }
        }
    }
}

}  // namespace
