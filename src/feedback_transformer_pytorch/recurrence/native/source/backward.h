// The backward pass of a segment, without the gradients of parameters: Python computes those for many segments at once,
// from what is written here. Threads divide the work as in the forward pass.

#pragma once

#include "attention.h"
#include "elementwise.h"
#include "key_value_gradient.h"
#include "norm.h"
#include "packed_products.h"
#include "structures.h"
#include "team.h"

namespace {

// Walks a segment through all layers in reverse, and writes the gradients of its states.
template <class Weight, class Real>
void backward(const Team& team, const Model<Real>& model, const Backward<Real>& step) {
    const SegmentData<Real>& segment = step.segment;
    const Index dim = model.dim, rows = model.batch * segment.length, hidden = model.hidden;
    Real* weights = segment.weights + team.thread * (model.slots + segment.local);
    const auto [first_row, last_row] = team.share(rows);
    slot_gradient(team, model, step);
    team.barrier();
    product_to<Weight>(team, step.grad_kv, rows, model.to_kv, step.grad_mixed);
    team.barrier();
    for (Index row = first_row; row < last_row; ++row) {
        Real *mixed = step.grad_mixed + row * dim, *top = step.grad_states[model.layers] + row * dim;
        if (model.memory_norm) {
            norm_backward(*model.memory_norm, mixed, step.mixed + row * dim, step.mixed_mean[row], step.mixed_rstd[row],
                          dim, mixed);
        }
        const Real weight = model.mix ? model.mix[model.layers] : 1;
        for (Index i = 0; i < dim; ++i) top[i] = step.grad_top[row * dim + i] + weight * mixed[i];
    }
    team.barrier();
    for (Index layer = model.layers; layer-- > 0;) {
        const LayerWeights<Real>& layer_weights = model.layer_weights[layer];
        const Real* grad = step.grad_states[layer + 1];
        Real* grad_hidden = step.grad_hidden[layer];
        product<Weight, Real, 1>(team, grad, rows, {layer_weights.from_hidden},
                                 [&](Index row, Index column, Index count, auto& results) {
            const Index first = row * 2 * hidden + column;
            const Real *value = step.hidden[layer] + first, *gate = value + hidden, *mask = step.hidden_mask[layer];
            Real *grad_value = grad_hidden + first, *grad_gate = grad_value + hidden;
            Real *to = step.product[layer] + row * hidden + column, *grad_to = results[0];
            if (mask) {
                mask += row * hidden + column;
                for (Index i = 0; i < count; ++i) grad_to[i] *= mask[i];
            }
#pragma omp simd
            for (Index i = 0; i < count; ++i) {
                const Real cdf = normal_cdf(gate[i]), gelu = cdf * gate[i];
                to[i] = gelu * value[i];
                grad_value[i] = grad_to[i] * gelu;
                grad_gate[i] = grad_to[i] * value[i] * (cdf + gate[i] * normal_pdf(gate[i]));
            }
            if (mask) {
                for (Index i = 0; i < count; ++i) to[i] *= mask[i];
            }
        });
        team.barrier();
        product_to<Weight>(team, grad_hidden, rows, layer_weights.value, step.grad_normed_f[layer]);
        team.barrier();
        for (Index row = first_row; row < last_row; ++row) {
            const Index first = row * dim;
            Real *whole = step.grad_middle_whole + first, *through = step.grad_middle[layer] + first;
            norm_backward(layer_weights.norm_feedforward, step.grad_normed_f[layer] + first, step.middle[layer] + first,
                          step.mean_f[layer][row], step.rstd_f[layer][row], dim, whole);
            const bool has_keys = !segment.has_keys || segment.has_keys[row];
            for (Index i = 0; i < dim; ++i) {
                whole[i] += grad[first + i];
                through[i] = has_keys ? whole[i] : 0;
            }
        }
        team.barrier();
        product_to<Weight>(team, step.grad_middle[layer], rows, layer_weights.to_out, step.grad_out);
        team.barrier();
        const auto [begin, end] = team.share(model.pairs());
        with_vectors<Stored<Weight>, Real>(model.width, [&, begin = begin, end = end](auto vectors) {
            for (Index pair = begin; pair < end; ++pair) {
                attend_backward<Stored<Weight>, Real, decltype(vectors)::value>(team, model, step, layer, pair,
                                                                                weights);
            }
        });
        team.barrier();
        product_to<Weight>(team, step.grad_q[layer], rows, layer_weights.to_q, step.grad_normed_a[layer]);
        if (segment.local) {  // each thread adds to the columns that it has just written
            product<Weight, Real, 1>(team, step.grad_local[layer], rows, {model.to_kv},
                                     [&](Index row, Index column, Index count, auto& results) {
                Real* to = step.grad_normed_a[layer] + row * dim + column;
                for (Index i = 0; i < count; ++i) to[i] += results[0][i];
            });
        }
        team.barrier();
        const Real weight = model.mix ? model.mix[layer] : 0;
        for (Index row = first_row; row < last_row; ++row) {
            const Index first = row * dim;
            Real* below = step.grad_states[layer] + first;
            norm_backward(layer_weights.norm_attention, step.grad_normed_a[layer] + first, step.states[layer] + first,
                          step.mean_a[layer][row], step.rstd_a[layer][row], dim, below);
            for (Index i = 0; i < dim; ++i) {
                below[i] += step.grad_middle_whole[first + i] + weight * step.grad_mixed[first + i];
            }
        }
        team.barrier();
    }
}

}  // namespace
