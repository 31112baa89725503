// LayerNorm and its gradient.

#pragma once

#include <cmath>

#include "structures.h"
#include "team.h"

namespace {

// Writes the norm of x (R, D) to `out`.
template <class Real>
void norm(const Team& team, const NormWeights<Real>& norm, const Real* x, Index rows, Index dim, Real* out) {
    const auto [begin, end] = team.share(rows);
    for (Index row = begin; row < end; ++row) {
        const Real* from = x + row * dim;
        Real mean = 0, variance = 0;
#pragma omp simd reduction(+ : mean)
        for (Index i = 0; i < dim; ++i) mean += from[i];
        mean /= dim;
#pragma omp simd reduction(+ : variance)
        for (Index i = 0; i < dim; ++i) variance += (from[i] - mean) * (from[i] - mean);
        const Real rstd = 1 / std::sqrt(variance / dim + Real(norm.eps));
        Real* to = out + row * dim;
#pragma omp simd
        for (Index i = 0; i < dim; ++i) to[i] = (from[i] - mean) * rstd * norm.weight[i] + norm.bias[i];
    }
}

// Writes the gradient of a row x (D,), given that of the normed row. `out` may be `grad`.
template <class Real>
void norm_backward(const NormWeights<Real>& norm, const Real* grad, const Real* x, Real mean, Real rstd, Index dim,
                   Real* out) {
    Real total = 0, along = 0;
#pragma omp simd reduction(+ : total, along)
    for (Index i = 0; i < dim; ++i) {
        const Real weighted = grad[i] * norm.weight[i];
        total += weighted;
        along += weighted * (x[i] - mean);
    }
    total /= dim;
    along *= rstd * rstd / dim;
#pragma omp simd
    for (Index i = 0; i < dim; ++i) out[i] = rstd * (grad[i] * norm.weight[i] - total - (x[i] - mean) * along);
}

}  // namespace
