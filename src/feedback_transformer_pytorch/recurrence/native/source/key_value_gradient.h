// The gradients of the memory's keys and values. For each query of a strip, `attend_backward` has written a vector (an
// operand) and a line of weights, one for each slot (the band). The gradient of a slot is the weighted sum of operands.

#pragma once

#include <algorithm>

#include "row_products.h"
#include "structures.h"
#include "team.h"

namespace {

// Writes the gradient of the keys and values that the segment stored: `total`, and what the later segments of its strip
// contribute.
template <class Real> void slot_gradient(const Team& team, const Model<Real>& model, const Backward<Real>& step) {
    const Index width = model.width, length = step.segment.length, queries = model.heads_per_group * length;
    const Index lines = step.places * model.layers * queries, later = (step.place + 1) * model.layers * queries;
    const auto [begin, end] = team.share(2 * model.pairs());
    for (Index half_pair = begin; half_pair < end; ++half_pair) {
        const Index half = half_pair / model.pairs(), pair = half_pair % model.pairs();
        const Real* weights =
            step.grad_scores_band + (half_pair * lines + later) * step.columns + model.slots + step.place * length;
        const Real* rows = step.operands + (half_pair * lines + later) * width;
        for (Index token = 0; token < length; ++token) {
            Real* to = step.grad_kv + (pair / model.groups * length + token) * model.kv() +
                       (half * model.groups + pair % model.groups) * width;
            std::copy_n(step.total + half * step.total_stride + pair * model.pair_stride + token * width, width, to);
            with_vectors<Real, Real>(width, [&](auto vectors) {
                weighted_sum<Real, decltype(vectors)::value>(weights + token, step.columns, rows, width, lines - later,
                                                             width, to);
            });
        }
    }
}

// Adds what all queries of a strip contribute to the gradients of the slots before the strip. `step` is that of the
// strip's first segment.
template <class Real> void end_strip(const Team& team, const Model<Real>& model, const Backward<Real>& step) {
    const Index lines = step.places * model.layers * model.heads_per_group * step.segment.length;
    const auto [begin, end] = team.share(2 * model.pairs());
    for (Index half_pair = begin; half_pair < end; ++half_pair) {
        const Index half = half_pair / model.pairs(), pair = half_pair % model.pairs();
        Real* to = step.total + half * step.total_stride + pair * model.pair_stride - model.slots * model.width;
        with_vectors<Real, Real>(model.width, [&](auto vectors) {
            transposed_product<Real, decltype(vectors)::value>(
                step.grad_scores_band + half_pair * lines * step.columns, step.columns,
                step.operands + half_pair * lines * model.width, lines, model.slots, model.width, to);
        });
    }
}

}  // namespace
