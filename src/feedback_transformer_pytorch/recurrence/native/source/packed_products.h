// Products of a step's rows with packed weights. Each thread takes a share of the panels. A tile is the product of a
// few rows and a panel; its sums are in registers.

#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "pack.h"
#include "structures.h"
#include "team.h"
#include "vectors.h"

namespace {

// The most rows of a tile. Each has two vectors of sums.
constexpr int kTileRows = kAccumulators / 2;
// The most rows of a step that the kernel computes.
constexpr Index kMostRows = 256;
// How far ahead a single tile prefetches weights, and how far in each of several streams.
constexpr Index kAheadBytes = 4096;
constexpr Index kStreamAheadBytes = 384;
// From this many bytes on, weights are read in streams, because most of them have left the caches by the next step.
// Measured with 44 and 88 MB (LOG.md).
#if defined(__znver1__) || defined(__znver2__) || defined(__znver3__) || defined(__znver4__) || defined(__znver5__)
constexpr Index kBytesToStream = Index(1) << 26;
#else
constexpr Index kBytesToStream = Index(1) << 25;
#endif
// The depth of the part of a panel that several tiles use in turn.
constexpr Index kDepth = 128;

// The sums of a tile, (Rows, panel).
template <class Real, int Rows> struct Totals {
    Vector<Real> sums[Rows][2];

    explicit Totals(const Real* from) {
        for (int row = 0; row < Rows; ++row) load_two(from + row * kPanel<Real>, sums[row]);
    }

    // Adds the outer product of x (Rows,), whose numbers are `stride` apart, and a row of a panel.
    void add(const Real* x, Index stride, const Vector<Real> (&weight)[2]) {
#pragma GCC unroll 12
        for (int row = 0; row < Rows; ++row) {
            const Real factor = x[row * stride];
            sums[row][0] += factor * weight[0];
            sums[row][1] += factor * weight[1];
        }
    }

#if defined(__AVX512BF16__)
    void add(const Bf16Pair* x, Index stride, const Vector<Real> (&weight)[2]) {
#pragma GCC unroll 12
        for (int row = 0; row < Rows; ++row) {
            int32_t pair;
            std::memcpy(&pair, x + row * stride, sizeof pair);
            const __m512bh factor = (__m512bh)_mm512_set1_epi32(pair);
            sums[row][0] = (Vector<Real>)_mm512_dpbf16_ps((__m512)sums[row][0], (__m512bh)weight[0], factor);
            sums[row][1] = (Vector<Real>)_mm512_dpbf16_ps((__m512)sums[row][1], (__m512bh)weight[1], factor);
        }
    }
#endif

    void save(Real* to) const {
        for (int row = 0; row < Rows; ++row) {
            store<Real>(to + row * kPanel<Real>, sums[row][0]);
            store<Real>(to + row * kPanel<Real> + kLanes<Real>, sums[row][1]);
        }
    }
};

// Adds x (Rows, depth) times a part of a panel to `out` (Rows, panel). For each row of the panel it prefetches one or
// two lines at `ahead`, which then moves on by `ahead_step` bytes.
template <class Weight, class Real, int Rows, bool TwoLines, class Input>
void tile(const Input* x, Index stride, const Weight* panel, Index depth, const char* ahead, Index ahead_step,
          Real* out) {
    Totals<Real, Rows> totals(out);
    for (Index k = 0; k < depth; ++k, ahead += ahead_step) {
        __builtin_prefetch(ahead);
        if constexpr (TwoLines) __builtin_prefetch(ahead + kLine);
        Vector<Real> weight[2];
        load_two(panel + k * kPanel<Real>, weight);
        totals.add(x + k, stride, weight);
    }
    totals.save(out);
}

// The same for `streams` consecutive parts of `depth` rows each. It reads them together, a row of each in turn, and
// prefetches ahead in each. Beyond its end that is in the next panel, `to_next` rows further on.
template <class Weight, class Real, int Rows, class Input>
void streamed_tile(const Input* x, Index stride, const Weight* panel, Index depth, Index streams, Index to_next,
                   Real* out) {
    constexpr Index row = kPanel<Real>, rows_ahead = kStreamAheadBytes / (row * sizeof(Weight));
    Totals<Real, Rows> totals(out);
    for (Index i = 0; i < depth; ++i) {
        const Index ahead = (rows_ahead + (i + rows_ahead < depth ? 0 : to_next)) * row;
        for (Index k = i; k < streams * depth; k += depth) {
            const Weight* from = panel + k * row;
            __builtin_prefetch(from + ahead);
            if constexpr (row * sizeof(Weight) > kLine) __builtin_prefetch(from + ahead + row / 2);
            Vector<Real> weight[2];
            load_two(from, weight);
            totals.add(x + k, stride, weight);
        }
    }
    totals.save(out);
}

// Calls `run` with the number of a tile's rows as a compile-time constant.
template <class Run, int... Rows> void with_rows(Index rows, Run run, std::integer_sequence<int, Rows...>) {
    ((rows == Rows + 1 ? run(std::integral_constant<int, Rows + 1>()) : void()), ...);
}
template <class Run> void with_rows(Index rows, Run run) {
    with_rows(rows, run, std::make_integer_sequence<int, kTileRows>());
}

// Writes x (rows, depth) times a panel to `out` (rows, panel). If the rows fit into one tile, it reads the panel in
// `streams` streams. Otherwise all tiles use a part of the panel while it is in the nearest cache.
template <class Weight, class Real, class Input>
void rows_times_panel(const Input* x, Index rows, Index depth, const Weight* panel, Index streams, Real* out) {
    const Index tile_count = (rows + kTileRows - 1) / kTileRows, bytes = kPanel<Real> * sizeof(Weight);
    Index begin = 0;
    std::fill_n(out, rows * kPanel<Real>, Real(0));
    if (tile_count == 1 && streams > 1) {
        const Index part = depth / streams;
        begin = part * streams;
        with_rows(rows, [&](auto count) {
            streamed_tile<Weight, Real, decltype(count)::value>(x, depth, panel, part, streams, depth - part, out);
        });
    }
    const Index step = tile_count == 1 ? depth : kDepth;
    for (Index k = begin; k < depth; k += step) {
        const Index part = std::min(step, depth - k);
        const auto* here = reinterpret_cast<const char*>(panel + k * kPanel<Real>);
        for (Index index = 0; index < tile_count; ++index) {
            const Index first = rows * index / tile_count, last = rows * (index + 1) / tile_count;
            // A single tile prefetches a little ahead. Of several tiles, each prefetches its share of the next part.
            const char* ahead =
                here + (tile_count == 1 ? kAheadBytes : part * bytes + part * bytes * index / tile_count);
            with_rows(last - first, [&](auto count) {
                auto run = [&](auto two_lines) {
                    tile<Weight, Real, decltype(count)::value, decltype(two_lines)::value>(
                        x + first * depth + k, depth, panel + k * kPanel<Real>, part, ahead, bytes / tile_count,
                        out + first * kPanel<Real>);
                };
                bytes / tile_count > kLine ? run(std::true_type()) : run(std::false_type());
            });
        }
    }
}

// x (R, in) as a product with weights of this type reads it, and the length of its rows.
template <class Weight, class Real> struct Operand {
    const Real* rows;
    Index depth;

    Operand(const Real* x, Index, Index inputs) : rows(x), depth(inputs) {}
};

#if defined(__AVX512BF16__)
// Rounded to bf16, in pairs. With an odd number of inputs, the last pair is filled with zero.
template <> struct Operand<Bf16Pair, float> {
    const Bf16Pair* rows;
    Index depth;

    Operand(const float* x, Index count, Index inputs) : depth((inputs + 1) / 2) {
        static thread_local std::vector<Bf16Pair> pairs;
        constexpr Index lanes = kLanes<float>;
        if (Index(pairs.size()) < count * depth) pairs.resize(count * depth);
        for (Index row = 0; row < count; ++row) {
            const float* from = x + row * inputs;
            Bf16* to = &pairs[row * depth].even;
            Index i = 0;
            for (; i + lanes <= inputs; i += lanes) {
                const __m256bh rounded = _mm512_cvtneps_pbh((__m512)load<float>(from + i));
                std::memcpy(to + i, &rounded, sizeof rounded);
            }
            for (; i < inputs; ++i) round_to(to[i], from[i]);
            if (inputs % 2) round_to(to[inputs], 0.0f);
        }
        rows = pairs.data();
    }
};
#endif

// Multiplies x (R, in) by `Count` weights of the same shape. Calls `finish(row, column, count, results)` for each row
// of each panel: results[i] points at the `count` outputs of weight i from `column` on, bias included.
template <class Weight, class Real, int Count, class Finish>
void product(const Team& team, const Real* x, Index rows, const std::array<PackedLinear<Real>, Count>& linears,
             Finish finish) {
    const Operand<Weight, Real> operand(x, rows, linears[0].inputs);
    const Index depth = operand.depth, width = linears[0].outputs, panels = (width + kPanel<Real> - 1) / kPanel<Real>;
    alignas(kVectorBytes) Real tiles[Count][kMostRows * kPanel<Real>];
    const auto [begin, end] = team.share(panels);
    for (Index panel = begin; panel < end; ++panel) {
        const Index column = panel * kPanel<Real>, count = std::min<Index>(kPanel<Real>, width - column);
        for (int which = 0; which < Count; ++which) {
            const auto* weight = static_cast<const Weight*>(linears[which].panels) + panel * depth * kPanel<Real>;
            rows_times_panel(operand.rows, rows, depth, weight, linears[which].streams, tiles[which]);
        }
        for (Index row = 0; row < rows; ++row) {
            std::array<Real*, Count> results;
            for (int which = 0; which < Count; ++which) {
                results[which] = tiles[which] + row * kPanel<Real>;
                if (const Real* scales = linears[which].scales) {
                    for (Index i = 0; i < count; ++i) results[which][i] *= scales[column + i];
                }
                if (const Real* bias = linears[which].bias) {
                    for (Index i = 0; i < count; ++i) results[which][i] += bias[column + i];
                }
            }
            finish(row, column, count, results);
        }
    }
}

// Multiplies x (R, in) by a weight and writes the result to `out` (R, out).
template <class Weight, class Real>
void product_to(const Team& team, const Real* x, Index rows, const PackedLinear<Real>& linear, Real* out) {
    product<Weight, Real, 1>(team, x, rows, {linear}, [&](Index row, Index column, Index count, auto& results) {
        std::copy_n(results[0], count, out + row * linear.outputs + column);
    });
}

}  // namespace
