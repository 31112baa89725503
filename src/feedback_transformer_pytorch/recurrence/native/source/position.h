// Relative position. The score of a query and a key includes the query's product with the vector of their distance.

#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "row_products.h"
#include "structures.h"

namespace {

// The number of T5's buckets of distances. The first half of them hold one distance each.
constexpr Index kBuckets = 32;

// Divides the columns from `first` to before `last` of a query's window by the buckets of their distances. Calls
// `run(bucket, begin, end)` for each bucket that is not empty. The distance of column j is reach - j.
template <class Real, class Run>
void for_each_bucket(const Model<Real>& model, Index reach, Index first, Index last, Run run) {
    for (Index bucket = 0; bucket < kBuckets && last > first; ++bucket) {
        const Index begin = std::max(first, reach - model.bucket_starts[bucket + 1] + 1);
        if (begin < last) run(bucket, begin, last);
        last = std::min(last, begin);
    }
}

// Adds the query's products with the vectors of their distances to the scores from `first` to before `last`.
template <class Real>
void add_position(const Model<Real>& model, const Real* q, Index reach, Index first, Index last, Real* scores) {
    alignas(kVectorBytes) Real products[kBuckets] = {};
    weighted_sum<Real, kBuckets / kLanes<Real>>(q, 1, model.position_t, kBuckets, model.width, kBuckets, products);
    const int32_t* bucket_of = model.bucket_of + model.farthest - reach;
    Index j = first;
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<Real, float>) {  // one instruction looks up 16 of 32 numbers
        const __m512 low = _mm512_load_ps(products), high = _mm512_load_ps(products + 16);
        for (; j + 16 <= last; j += 16) {
            const __m512 found = _mm512_permutex2var_ps(low, _mm512_loadu_si512(bucket_of + j), high);
            _mm512_storeu_ps(scores + j, _mm512_add_ps(_mm512_loadu_ps(scores + j), found));
        }
    }
#endif
    for (; j < last; ++j) scores[j] += products[bucket_of[j]];
}

// Writes the gradients of these products, (buckets,), which are the scores' gradients summed by bucket.
template <class Real>
void position_backward(const Model<Real>& model, Index reach, Index first, Index last, const Real* grad_scores,
                       Real* out) {
    std::fill_n(out, kBuckets, Real(0));
    for_each_bucket(model, reach, first, last, [&](Index bucket, Index begin, Index end) {
        Real total = 0;
        if (end - begin < 2 * kLanes<Real>) {  // as usual; the processor overlaps such short sums of several buckets
            for (Index j = begin; j < end; ++j) total += grad_scores[j];
        } else {
#pragma omp simd reduction(+ : total)
            for (Index j = begin; j < end; ++j) total += grad_scores[j];
        }
        out[bucket] = total;
    });
}

}  // namespace
