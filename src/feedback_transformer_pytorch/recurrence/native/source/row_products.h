// Products with rows that are not packed, such as the keys and values of a window. The usual widths of a row are
// compile-time constants, so that what is multiplied stays in registers.

#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "numbers.h"
#include "vectors.h"

namespace {

// How many streams the rows of a window are prefetched in.
constexpr Index kWindowStreams = 8;

// Loads a row of `Vectors` vectors. Numbers in bf16 are in the order in which `load_two` leaves them.
template <class Real, int Vectors, class Number> void load_row(const Number* from, Vector<Real> (&to)[Vectors]) {
    if constexpr (Vectors == 1) {
        to[0] = load<Real>(from);
    } else {
        for (int v = 0; v < Vectors; v += 2) load_two(from + v * kLanes<Real>, to + v);
    }
}

// Loads a row of Real in the order in which `load_row` leaves a row of Number.
template <class Number, class Real, int Vectors> void load_row_as(const Real* from, Vector<Real> (&to)[Vectors]) {
    load_row<Real, Vectors>(from, to);
    if constexpr (!std::is_same_v<Number, Real>) {
        for (int v = 0; v < Vectors; v += 2) {
            const Vector<Real> a = to[v], b = to[v + 1];
            to[v] = shuffle<Real>(a, b, kEven);
            to[v + 1] = shuffle<Real>(a, b, kOdd);
        }
    }
}

// Adds sums in that order to `to`.
template <class Number, class Real, int Vectors> void add_row(const Vector<Real> (&sums)[Vectors], Real* to) {
    constexpr int lanes = kLanes<Real>;
    if constexpr (std::is_same_v<Number, Real>) {
        for (int v = 0; v < Vectors; ++v) store<Real>(to + v * lanes, load<Real>(to + v * lanes) + sums[v]);
    } else {
        for (int v = 0; v < Vectors; v += 2) {
            Real* here = to + v * lanes;
            store<Real>(here, load<Real>(here) + shuffle<Real>(sums[v], sums[v + 1], kInterleaveLow<Real>));
            here += lanes;
            store<Real>(here, load<Real>(here) + shuffle<Real>(sums[v], sums[v + 1], kInterleaveHigh<Real>));
        }
    }
}

// Prefetches one of `count` rows into the second-level cache. As `index` counts up, rows come from several streams in
// turn. The processor's own prefetching is too late, because windows are short and lie far apart.
template <class Number, int Width> void prefetch(const Number* rows, Index stride, Index count, Index index) {
    const Index part = (count + kWindowStreams - 1) / kWindowStreams;
    const Index place = index % kWindowStreams * part + index / kWindowStreams;
    const Number* row = rows + std::min(place, count - 1) * stride;
    for (int byte = 0; byte < Width * int(sizeof(Number)); byte += kLine) {
        __builtin_prefetch(reinterpret_cast<const char*>(row) + byte, 0, 2);
    }
}

// out[j] = q . rows[j], for rows of `width` numbers, `stride` apart. `Vectors` is the width in vectors, or 0 for any
// width. `next` is null, or as many rows that will be read next; they are prefetched.
template <class Real, int Vectors, class Number>
void dot_products(const Real* q, const Number* rows, Index stride, Index count, Index width, Real* out,
                  const Number* next = nullptr) {
    if constexpr (Vectors == 0) {
        for (Index j = 0; j < count; ++j) {
            Real total = 0;
#pragma omp simd reduction(+ : total)
            for (Index e = 0; e < width; ++e) total += q[e] * to_float(rows[j * stride + e]);
            out[j] = total;
        }
    } else {
        constexpr int lanes = kLanes<Real>;
        Vector<Real> query[Vectors];
        load_row_as<Number, Real>(q, query);
        for (Index j = 0; j < count; j += lanes) {
            const Index last = std::min<Index>(lanes, count - j) - 1;
            Vector<Real> totals[lanes];
#pragma GCC unroll 16
            for (int i = 0; i < lanes; ++i) {
                const Number* row = rows + (j + std::min<Index>(i, last)) * stride;
                if (next) prefetch<Number, Vectors * lanes>(next, stride, count, j + i);
                Vector<Real> key[Vectors];
                load_row<Real, Vectors>(row, key);
                totals[i] = query[0] * key[0];
#pragma GCC unroll 8
                for (int v = 1; v < Vectors; ++v) totals[i] += query[v] * key[v];
            }
            const Vector<Real> products = sums<Real>(totals);
            if (last + 1 == lanes) {
                store<Real>(out + j, products);
            } else {
                std::memcpy(out + j, &products, (last + 1) * sizeof(Real));
            }
        }
    }
}

// out += sum over j of weights[j] * rows[j], where the weights are `weight_stride` apart.
template <class Real, int Vectors, class Number>
void weighted_sum(const Real* weights, Index weight_stride, const Number* rows, Index stride, Index count, Index width,
                  Real* out, const Number* next = nullptr) {
    if constexpr (Vectors == 0) {
        for (Index j = 0; j < count; ++j) {
#pragma omp simd
            for (Index e = 0; e < width; ++e) out[e] += weights[j * weight_stride] * to_float(rows[j * stride + e]);
        }
    } else {
        constexpr int lanes = kLanes<Real>;
        Vector<Real> even[Vectors] = {}, odd[Vectors] = {}, row[Vectors];
        Index j = 0;
        for (; j + 1 < count; j += 2) {
            if (next) {
                prefetch<Number, Vectors * lanes>(next, stride, count, j);
                prefetch<Number, Vectors * lanes>(next, stride, count, j + 1);
            }
            load_row<Real, Vectors>(rows + j * stride, row);
            for (int v = 0; v < Vectors; ++v) even[v] += weights[j * weight_stride] * row[v];
            load_row<Real, Vectors>(rows + (j + 1) * stride, row);
            for (int v = 0; v < Vectors; ++v) odd[v] += weights[(j + 1) * weight_stride] * row[v];
        }
        if (j < count) {
            load_row<Real, Vectors>(rows + j * stride, row);
            for (int v = 0; v < Vectors; ++v) even[v] += weights[j * weight_stride] * row[v];
        }
        for (int v = 0; v < Vectors; ++v) even[v] += odd[v];
        add_row<Number, Real>(even, out);
    }
}

// Calls `run` with the width of a row in vectors as a compile-time constant if it is 1, 2, 4 or 8, otherwise with 0.
// With bf16, which is loaded two vectors at a time, 1 is 0 too.
template <class Number, class Real, class Run> void with_vectors(Index width, Run run) {
    switch (width % kLanes<Real> ? 0 : width / kLanes<Real>) {
        case 1: return run(std::integral_constant<int, std::is_same_v<Number, Real>>());
        case 2: return run(std::integral_constant<int, 2>());
        case 4: return run(std::integral_constant<int, 4>());
        case 8: return run(std::integral_constant<int, 8>());
        default: return run(std::integral_constant<int, 0>());
    }
}

// out (count, width) += weights (lines, columns)^T times rows (lines, width).
template <class Real, int Vectors>
void transposed_product(const Real* weights, Index columns, const Real* rows, Index lines, Index count, Index width,
                        Real* out) {
    Index j = 0;
    if constexpr (Vectors > 0) {
        constexpr int height = kAccumulators / Vectors;
        static_assert(height > 0);
        for (; j + height <= count; j += height) {
            Vector<Real> totals[height][Vectors];
            for (int row = 0; row < height; ++row) {
                for (int v = 0; v < Vectors; ++v) {
                    totals[row][v] = load<Real>(out + (j + row) * width + v * kLanes<Real>);
                }
            }
            for (Index line = 0; line < lines; ++line) {
                Vector<Real> vectors[Vectors];
                for (int v = 0; v < Vectors; ++v) vectors[v] = load<Real>(rows + line * width + v * kLanes<Real>);
#pragma GCC unroll 24
                for (int row = 0; row < height; ++row) {
                    for (int v = 0; v < Vectors; ++v) totals[row][v] += weights[line * columns + j + row] * vectors[v];
                }
            }
            for (int row = 0; row < height; ++row) {
                for (int v = 0; v < Vectors; ++v) {
                    store<Real>(out + (j + row) * width + v * kLanes<Real>, totals[row][v]);
                }
            }
        }
    }
    for (; j < count; ++j) {
        weighted_sum<Real, Vectors>(weights + j, columns, rows, width, lines, width, out + j * width);
    }
}

}  // namespace
