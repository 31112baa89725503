// One segment of the fused walk, down or up all layers in one call, for CPUs.
//
// The same steps as the ops of sublayers.py, in one team of threads: a phase is shared out by panels of a weight, by
// rows, or by pairs of batch row and key/value head, and ends in a barrier. Weights lie in panels, as `pack` leaves them;
// they are read once a phase, which is what few rows wait for. Axis letters are those of docs/design.md.
//
// Needs the vector extensions of GCC and Clang, and OpenMP. library.py compiles it, steps.py calls it.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif
#include <omp.h>

namespace {

using Index = int64_t;

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Rows of a tile: two vectors each, and room left in the registers for the weights.
constexpr int kTileRows = kVectorBytes == 64 ? 12 : 6;
// How far ahead of its use a weight is fetched when it is used by one tile only.
constexpr Index kAheadBytes = 4096;
// The same in each of several streams.
constexpr Index kStreamAheadBytes = 384;
// Bytes of weights from which on too few of them are still in the caches a step later, so that streams are the faster way.
// Measured with 44 and 88 MB (LOG.md).
#if defined(__znver1__) || defined(__znver2__) || defined(__znver3__) || defined(__znver4__) || defined(__znver5__)
constexpr Index kBytesToStream = Index(1) << 26;
#else
constexpr Index kBytesToStream = Index(1) << 25;
#endif
// Of a window's rows.
constexpr Index kWindowStreams = 8;
constexpr Index kLine = 64;
// How deep a part of a panel is that several tiles use one after the other.
constexpr Index kDepth = 128;
// The most rows of a step.
constexpr Index kMostRows = 256;
// T5's buckets of distances; the first half of them holds one distance each.
constexpr Index kBuckets = 32;

template <class Real> constexpr int kLanes = kVectorBytes / int(sizeof(Real));
template <class Real> constexpr int kPanel = 2 * kLanes<Real>;

template <class Real, int Lanes> struct VectorOf {
    typedef Real type __attribute__((vector_size(Lanes * sizeof(Real))));
};
template <class Real> using Vector = typename VectorOf<Real, kLanes<Real>>::type;

struct Bf16 {
    uint16_t bits;
};

// Two inputs of a weight, or of what is multiplied with it, beside each other: what a bf16 dot product takes.
struct Bf16Pair {
    Bf16 even, odd;
};

// What the memory's keys and values are where weights are of this type.
template <class Weight> struct StoredOf {
    using type = Weight;
};
template <> struct StoredOf<Bf16Pair> {
    using type = Bf16;
};
template <class Weight> using Stored = typename StoredOf<Weight>::type;

inline float to_float(Bf16 number) {
    const uint32_t bits = uint32_t(number.bits) << 16;
    float found;
    std::memcpy(&found, &bits, sizeof found);
    return found;
}
inline float to_float(float number) { return number; }
inline double to_float(double number) { return number; }

inline void round_to(float& to, float value) { to = value; }
inline void round_to(double& to, double value) { to = value; }
inline void round_to(Bf16& to, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    to.bits = value == value ? uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : 0x7fc0;  // to nearest, ties to even
}

template <class Real> Vector<Real> load(const Real* from) {
    Vector<Real> found;
    std::memcpy(&found, from, sizeof found);
    return found;
}

template <class Real> void store(Real* to, const Vector<Real>& vector) { std::memcpy(to, &vector, sizeof vector); }

// For each lane the one that `Pick` names for it, of those of a and then those of b.
template <class Real, class Pick, int... Lane>
Vector<Real> shuffle(const Vector<Real>& a, const Vector<Real>& b, Pick pick, std::integer_sequence<int, Lane...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, pick(Lane)...);
#else
    constexpr Vector<std::conditional_t<sizeof(Real) == 4, int32_t, int64_t>> lanes = {pick(Lane)...};
    return __builtin_shuffle(a, b, lanes);
#endif
}
template <class Real, class Pick> Vector<Real> shuffle(const Vector<Real>& a, const Vector<Real>& b, Pick pick) {
    return shuffle<Real>(a, b, pick, std::make_integer_sequence<int, kLanes<Real>>());
}

// Of a and b one behind the other: every other lane; and one of a, one of b in turn, of their first or their last lanes.
constexpr auto kEven = [](int lane) { return 2 * lane; };
constexpr auto kOdd = [](int lane) { return 2 * lane + 1; };
template <class Real> constexpr auto kFirstInTurn = [](int lane) { return lane / 2 + lane % 2 * kLanes<Real>; };
template <class Real> constexpr auto kLastInTurn = [](int lane) {
    return (kLanes<Real> + lane) / 2 + lane % 2 * kLanes<Real>;
};

// The sums of the first `Count` vectors, in their order.
template <class Real, int Count = kLanes<Real>> Vector<Real> sums(Vector<Real>* vectors) {
    if constexpr (Count == 1) {
        return vectors[0];
    } else {
#pragma GCC unroll 8
        for (int i = 0; i < Count / 2; ++i) {
            const Vector<Real>&a = vectors[2 * i], &b = vectors[2 * i + 1];
            vectors[i] = shuffle<Real>(a, b, kEven) + shuffle<Real>(a, b, kOdd);
        }
        return sums<Real, Count / 2>(vectors);
    }
}

// ---- What Python hands over: the structures of structures.py, field by field. ----

struct Team {
    int me, size;

    void barrier() const {
#pragma omp barrier
    }

    // This member's part of `count` things.
    std::pair<Index, Index> share(Index count) const { return {count * me / size, count * (me + 1) / size}; }
};

// One tensor of each layer, and where in all of them a segment begins.
template <class Real> struct Layers {
    Real* const* tensors;
    Index offset;

    Real* operator[](Index layer) const { return tensors ? tensors[layer] + offset : nullptr; }
};

// A weight (out, in) in panels (ceil(out / panel), in, panel), or in panels of pairs (ceil(out / panel), ceil(in / 2), panel),
// and its bias (out,) or null. A weight that comes from memory is best read in several streams: a core waits for fewer pages
// at a time than memory could give.
template <class Real> struct Linear {
    const void* panels;
    const Real* bias;
    Index inputs, outputs, streams;
};

template <class Real> struct Norm {
    const Real* weight;
    const Real* bias;
    double eps;
};

// Forward, `value` and `gate` are the halves of the hidden layer. Backward, all weights are transposed, `value` is the
// whole hidden layer, and there is no `gate`.
template <class Real> struct Block {
    Norm<Real> norm_attention, norm_feedforward;
    Linear<Real> to_q, to_out, value, gate, from_hidden;
};

template <class Real> struct Model {
    Index threads, layers, batch, groups, heads_per_group, width, dim, hidden;  // G, H/G, E, D, F
    Index slots, pair_stride;                                                  // n, and numbers between two pairs' slots
    const Block<Real>* blocks;
    Linear<Real> to_kv;
    const Real* mix;         // (L+1,), or null for the top state alone
    const Norm<Real>* memory_norm;  // or null
    const Real *position, *position_t;  // vectors of distances, (buckets, E) and (E, buckets); or null
    const Index* bucket_starts;         // (buckets + 1,), the first distance of each bucket; the last is beyond all
    const int32_t* bucket_of;           // the buckets of distances `farthest`, `farthest` - 1, ...; 0 for negative ones
    Index farthest;

    Index inner() const { return groups * heads_per_group * width; }
    Index pairs() const { return batch * groups; }
    Index kv() const { return 2 * groups * width; }
};

// What both directions see of a segment. R = batch * length rows.
template <class Real> struct Segment {
    Index length, local, masked_slots;  // local: keys of the segment itself, 0 or its length
    const void *keys, *values;        // its window, (BG, n, E), in the type of the weights
    const Real* bias;                 // (BG, Q, n + local), or null for none
    const uint8_t* has_keys;            // (R,) or null
    Real* weights;                    // workspace: (members of the team, n + local)
    Layers<Real> q, local_kv, probabilities, out;
    Layers<const Real> probabilities_mask;
};

template <class Real> struct Forward {
    Segment<Real> segment;
    Layers<Real> states, middle, hidden;
    Layers<const Real> hidden_mask;
    void *new_keys, *new_values;        // (BG, s, E), the segment's slots
    Real *normed, *product, *kv;        // workspace: (R, D), (R, F), (R, 2*G*E)
};

template <class Real> struct Backward {
    Segment<Real> segment;
    const Real* grad_top;                              // (R, D)
    Layers<Real> grad_states, grad_middle;             // (L+1, R, D), (L, R, D), written
    Layers<const Real> states, middle;                 // what the norms saw
    Layers<const Real> mean_a, rstd_a, mean_f, rstd_f;  // (R,)
    Layers<const Real> hidden, hidden_mask;            // (R, 2*F), (R, F)
    Layers<Real> product;                              // (R, F), what came out of the gate, written
    Layers<Real> grad_hidden, grad_normed_f, grad_normed_a, grad_q, grad_local, grad_scores;  // written
    Layers<Real> grad_products;  // (R, H * buckets), of the queries' products with the vectors of distances, written
    const Real *mixed, *mixed_mean, *mixed_rstd;       // what the memory's norm saw; null without one
    Real *grad_mixed, *grad_kv;                        // (R, D), (R, 2*G*E), written
    Real* total;                                       // (2, BG, s, E): what comes from outside and from later blocks
    Index total_stride;                                // between keys and values
    Real *grad_scores_band, *operands;                              // (2, BG, C, L, Q, columns) and (2, BG, C, L, Q, E)
    Index place, places, columns;                      // of the segment in its block, C
    Real* grad_bias;                                   // (members of the team, H, s, n + local), added to; or null
    Index grad_bias_stride;                            // between two members
    Real *grad_middle_whole, *grad_out;                // workspace: (R, D), (R, H*E)
};

// ---- Products with packed weights ----

template <class Real> void load_two(const Real* from, Vector<Real>* to) {
    to[0] = load<Real>(from);
    to[1] = load<Real>(from + kLanes<Real>);
}

// Two bf16 share a word: the low half goes to the first vector, the high half to the second.
inline void load_two(const Bf16* from, Vector<float>* to) {
    typedef VectorOf<uint32_t, kLanes<float>>::type Words;
    Words words;
    std::memcpy(&words, from, sizeof words);
    to[0] = (Vector<float>)(words << 16);
    to[1] = (Vector<float>)(words & 0xffff0000u);
}

#if defined(__AVX512BF16__)
// Pairs as they are; only `Totals::add` knows what they are.
inline void load_two(const Bf16Pair* from, Vector<float>* to) { std::memcpy(to, from, 2 * sizeof(Vector<float>)); }
#endif

// The sums of a tile, (Rows, panel).
template <class Real, int Rows> struct Totals {
    Vector<Real> sums[Rows][2];

    explicit Totals(const Real* from) {
        for (int row = 0; row < Rows; ++row) load_two(from + row * kPanel<Real>, sums[row]);
    }

    // Adds x (Rows,), a column of numbers `stride` apart, times a row of a panel.
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

// Adds x (Rows, depth) times a part of a panel to `out` (Rows, panel), fetching `ahead` on the way.
template <class Weight, class Real, int Rows, bool Twice, class Input>
void tile(const Input* x, Index stride, const Weight* panel, Index depth, const char* ahead, Index ahead_step, Real* out) {
    Totals<Real, Rows> totals(out);
    for (Index k = 0; k < depth; ++k, ahead += ahead_step) {
        __builtin_prefetch(ahead);
        if constexpr (Twice) __builtin_prefetch(ahead + kLine);
        Vector<Real> weight[2];
        load_two(panel + k * kPanel<Real>, weight);
        totals.add(x + k, stride, weight);
    }
    totals.save(out);
}

// The same for `streams` parts of `depth` each, which are read at once, a row of each in turn. Towards their ends it fetches
// what the next panel, `to_next` rows behind the ends, begins with.
template <class Weight, class Real, int Rows, class Input>
void streamed_tile(const Input* x, Index stride, const Weight* panel, Index depth, Index streams, Index to_next, Real* out) {
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

// Calls `run` with the number of a tile's rows as a constant.
template <class Run, int... Rows> void with_rows(Index rows, Run run, std::integer_sequence<int, Rows...>) {
    ((rows == Rows + 1 ? run(std::integral_constant<int, Rows + 1>()) : void()), ...);
}
template <class Run> void with_rows(Index rows, Run run) {
    with_rows(rows, run, std::make_integer_sequence<int, kTileRows>());
}

// Rows times a panel. One tile takes it in streams, if it comes from memory; several take it part by part, all rows with
// a part while that is in the nearest cache.
template <class Weight, class Real, class Input>
void rows_times_panel(const Input* x, Index rows, Index depth, const Weight* panel, Index streams, Real* out) {
    const Index blocks = (rows + kTileRows - 1) / kTileRows, bytes = kPanel<Real> * sizeof(Weight);
    Index begin = 0;
    std::fill_n(out, rows * kPanel<Real>, Real(0));
    if (blocks == 1 && streams > 1) {
        const Index part = depth / streams;
        begin = part * streams;
        with_rows(rows, [&](auto count) {
            streamed_tile<Weight, Real, decltype(count)::value>(x, depth, panel, part, streams, depth - part, out);
        });
    }
    const Index step = blocks == 1 ? depth : kDepth;
    for (Index k = begin; k < depth; k += step) {
        const Index part = std::min(step, depth - k);
        const auto* here = reinterpret_cast<const char*>(panel + k * kPanel<Real>);
        for (Index block = 0; block < blocks; ++block) {
            const Index first = rows * block / blocks, last = rows * (block + 1) / blocks;
            // One block: fetch a little ahead. Several: each fetches its share of the next part.
            const char* ahead = here + (blocks == 1 ? kAheadBytes : part * bytes + part * bytes * block / blocks);
            with_rows(last - first, [&](auto count) {
                auto run = [&](auto twice) {
                    tile<Weight, Real, decltype(count)::value, decltype(twice)::value>(
                        x + first * depth + k, depth, panel + k * kPanel<Real>, part, ahead, bytes / blocks,
                        out + first * kPanel<Real>);
                };
                bytes / blocks > kLine ? run(std::true_type()) : run(std::false_type());
            });
        }
    }
}

// What a product with weights of this type reads of x (R, in), and how many of it are a row.
template <class Weight, class Real> struct Operand {
    const Real* rows;
    Index depth;

    Operand(const Real* x, Index, Index inputs) : rows(x), depth(inputs) {}
};

#if defined(__AVX512BF16__)
// Rounded to bf16, in pairs; of an odd number of inputs the last has zero beside it.
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

// x (R, in) times `Count` weights of one shape side by side. `finish(row, column, width, found)` gets each row of a panel:
// for each weight a pointer to `width` numbers, whose bias is added.
template <class Weight, class Real, int Count, class Finish>
void product(const Team& team, const Real* x, Index rows, const std::array<Linear<Real>, Count>& linears, Finish finish) {
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
            std::array<Real*, Count> found;
            for (int which = 0; which < Count; ++which) {
                found[which] = tiles[which] + row * kPanel<Real>;
                if (const Real* bias = linears[which].bias) {
                    for (Index i = 0; i < count; ++i) found[which][i] += bias[column + i];
                }
            }
            finish(row, column, count, found);
        }
    }
}

// The same for one weight, whose result is written to (R, out).
template <class Weight, class Real>
void product_to(const Team& team, const Real* x, Index rows, const Linear<Real>& linear, Real* out) {
    product<Weight, Real, 1>(team, x, rows, {linear}, [&](Index row, Index column, Index count, auto& found) {
        std::copy_n(found[0], count, out + row * linear.outputs + column);
    });
}

// ---- Rows ----

template <class Real> void norm(const Team& team, const Norm<Real>& norm, const Real* x, Index rows, Index dim, Real* out) {
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

// The gradient of a row of x, from that of the normed row; `out` may be `grad`.
template <class Real>
void norm_backward(const Norm<Real>& norm, const Real* grad, const Real* x, Real mean, Real rstd, Index dim, Real* out) {
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

// e^x for x <= 0, in a form that compilers vectorise: 2^n times the series of the rest, which is at most ln(2)/2.
template <class Real> Real exponential(Real x) {
    constexpr bool is_float = std::is_same_v<Real, float>;
    using Bits = std::conditional_t<is_float, int32_t, int64_t>;
    constexpr int mantissa = is_float ? 23 : 52, bias = is_float ? 127 : 1023, terms = is_float ? 7 : 13;
    constexpr Real to_whole = Real(3) * (Bits(1) << (mantissa - 1));  // adding it leaves no room for a fraction
    constexpr Real ln2_high = is_float ? Real(0x1.62ep-1) : Real(0x1.62e42feep-1);
    constexpr Real ln2_low = is_float ? Real(0x1.0bfbe8p-15) : Real(0x1.a39ef35793c76p-33);
    constexpr Real lowest = is_float ? Real(-87) : Real(-708);
    const Real whole = x * Real(1.44269504088896340736) + to_whole - to_whole;
    const Real rest = (x - whole * ln2_high) - whole * ln2_low;
    Real series = 1;
#pragma GCC unroll 16
    for (int term = terms; term > 0; --term) series = series * rest * (Real(1) / term) + 1;
    const Bits exponent = (Bits(x >= lowest ? whole : 0) + bias) << mantissa;
    Real power;
    std::memcpy(&power, &exponent, sizeof power);
    return x < lowest ? 0 : series * power;
}

// The error function. For float two interpolating polynomials, of erf(x) / x in x^2 below 1, and of -log(erfc(x)) up to 4,
// from where on it is 1; they are off by less than 2e-7.
inline double error_function(double x) { return std::erf(x); }
inline float error_function(float x) {
    constexpr float near[] = {1.1283791f, -0.37612626f, 0.11283594f, -0.026854211f, 0.0051890872f, -0.00080168643f,
                              7.8758749e-05f};
    constexpr float far[] = {-0.00032013806f, 1.1302334f,    0.63182604f,    0.11008009f,   -0.026421135f,
                             0.0047595962f,   -0.0005968058f, 4.6058045e-05f, -1.6371514e-06f};
    const float size = std::fabs(x), square = size * size, capped = size > 4 ? 4 : size;
    float below = 0, above = 0;
#pragma GCC unroll 7
    for (int power = 6; power >= 0; --power) below = below * square + near[power];
#pragma GCC unroll 9
    for (int power = 8; power >= 0; --power) above = above * capped + far[power];
    return size < 1 ? x * below : std::copysign(1 - exponential(-above), x);
}

// The normal distribution's share below x; gelu(x) is x times that.
template <class Real> Real normal_cdf(Real x) {
    return Real(0.5) * (1 + error_function(x * Real(0.70710678118654752440)));
}

template <class Real> Real normal_pdf(Real x) { return Real(0.39894228040143267794) * exponential(Real(-0.5) * x * x); }

// ---- Attention ----

// The vectors of a row, and the numbers of a row in the same order: that in which `load_two` finds bf16.
template <class Real, int Vectors, class Number> void load_row(const Number* from, Vector<Real> (&to)[Vectors]) {
    if constexpr (Vectors == 1) {
        to[0] = load<Real>(from);
    } else {
        for (int v = 0; v < Vectors; v += 2) load_two(from + v * kLanes<Real>, to + v);
    }
}
template <class Number, class Real, int Vectors> void load_alike(const Real* from, Vector<Real> (&to)[Vectors]) {
    load_row<Real, Vectors>(from, to);
    if constexpr (!std::is_same_v<Number, Real>) {
        for (int v = 0; v < Vectors; v += 2) {
            const Vector<Real> a = to[v], b = to[v + 1];
            to[v] = shuffle<Real>(a, b, kEven);
            to[v + 1] = shuffle<Real>(a, b, kOdd);
        }
    }
}

// Adds what is in that order to `to`.
template <class Number, class Real, int Vectors> void add_row(const Vector<Real> (&sums)[Vectors], Real* to) {
    constexpr int lanes = kLanes<Real>;
    if constexpr (std::is_same_v<Number, Real>) {
        for (int v = 0; v < Vectors; ++v) store<Real>(to + v * lanes, load<Real>(to + v * lanes) + sums[v]);
    } else {
        for (int v = 0; v < Vectors; v += 2) {
            Real* here = to + v * lanes;
            store<Real>(here, load<Real>(here) + shuffle<Real>(sums[v], sums[v + 1], kFirstInTurn<Real>));
            here += lanes;
            store<Real>(here, load<Real>(here) + shuffle<Real>(sums[v], sums[v + 1], kLastInTurn<Real>));
        }
    }
}

// Fetches the index-th of `count` rows that will be read next into the second cache, from several streams in turn. Windows
// are short, and begin far from each other: by themselves processors fetch too late.
template <class Number, int Width> void fetch(const Number* rows, Index stride, Index count, Index index) {
    const Index part = (count + kWindowStreams - 1) / kWindowStreams;
    const Index place = index % kWindowStreams * part + index / kWindowStreams;
    const Number* row = rows + std::min(place, count - 1) * stride;
    for (int byte = 0; byte < Width * int(sizeof(Number)); byte += kLine) {
        __builtin_prefetch(reinterpret_cast<const char*>(row) + byte, 0, 2);
    }
}

// out[j] = q . rows[j], for rows of `width` numbers, `stride` apart. Vectors: how many make up the width, 0 for any.
// `next`, unless null, are rows like these that will be read next.
template <class Real, int Vectors, class Number>
void dots(const Real* q, const Number* rows, Index stride, Index count, Index width, Real* out,
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
        load_alike<Number, Real>(q, query);
        for (Index j = 0; j < count; j += lanes) {
            const Index last = std::min<Index>(lanes, count - j) - 1;
            Vector<Real> totals[lanes];
#pragma GCC unroll 16
            for (int i = 0; i < lanes; ++i) {
                const Number* row = rows + (j + std::min<Index>(i, last)) * stride;
                if (next) fetch<Number, Vectors * lanes>(next, stride, count, j + i);
                Vector<Real> key[Vectors];
                load_row<Real, Vectors>(row, key);
                totals[i] = query[0] * key[0];
#pragma GCC unroll 8
                for (int v = 1; v < Vectors; ++v) totals[i] += query[v] * key[v];
            }
            const Vector<Real> found = sums<Real>(totals);
            if (last + 1 == lanes) {
                store<Real>(out + j, found);
            } else {
                std::memcpy(out + j, &found, (last + 1) * sizeof(Real));
            }
        }
    }
}

// out += sum over j of weights[j] * rows[j]; the weights are `weight_stride` apart.
template <class Real, int Vectors, class Number>
void weighted(const Real* weights, Index weight_stride, const Number* rows, Index stride, Index count, Index width,
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
                fetch<Number, Vectors * lanes>(next, stride, count, j);
                fetch<Number, Vectors * lanes>(next, stride, count, j + 1);
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

// Calls `run` with the number of vectors of a head as a constant where it is a usual one, otherwise with 0. Bf16 is read in
// twos.
template <class Number, class Real, class Run> void with_vectors(Index width, Run run) {
    switch (width % kLanes<Real> ? 0 : width / kLanes<Real>) {
        case 1: return run(std::integral_constant<int, std::is_same_v<Number, Real>>());
        case 2: return run(std::integral_constant<int, 2>());
        case 4: return run(std::integral_constant<int, 4>());
        case 8: return run(std::integral_constant<int, 8>());
        default: return run(std::integral_constant<int, 0>());
    }
}

// Where one query of a pair lies: in tensors of rows, and in those of heads.
template <class Real> struct Query {
    Index row, head;  // offsets in (R, H*E) and, times the columns, in (BG, Q, columns)

    Query(const Model<Real>& model, Index length, Index pair, Index query) {
        const Index b = pair / model.groups, g = pair % model.groups;
        const Index token = query % length, in_group = query / length;
        row = (b * length + token) * model.inner() + (g * model.heads_per_group + in_group) * model.width;
        head = pair * model.heads_per_group * length + query;
    }
};

// Calls `run(bucket, begin, end)` for each bucket of distances that columns `first` up to `last` of a query's window fall
// into, with the columns that do. The query is as far from column 0 as `reach`, and from each further one a step less.
template <class Real, class Run>
void for_each_bucket(const Model<Real>& model, Index reach, Index first, Index last, Run run) {
    for (Index bucket = 0; bucket < kBuckets && last > first; ++bucket) {
        const Index begin = std::max(first, reach - model.bucket_starts[bucket + 1] + 1);
        if (begin < last) run(bucket, begin, last);
        last = std::min(last, begin);
    }
}

// Adds to the scores of columns `first` up to `last` the query's products with the vectors of their distances.
template <class Real>
void add_position(const Model<Real>& model, const Real* q, Index reach, Index first, Index last, Real* scores) {
    alignas(kVectorBytes) Real products[kBuckets] = {};
    weighted<Real, kBuckets / kLanes<Real>>(q, 1, model.position_t, kBuckets, model.width, kBuckets, products);
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

// Writes the gradients of these products, (buckets,), from those of the scores.
template <class Real>
void position_backward(const Model<Real>& model, Index reach, Index first, Index last, const Real* grad_scores, Real* out) {
    std::fill_n(out, kBuckets, Real(0));
    for_each_bucket(model, reach, first, last, [&](Index bucket, Index begin, Index end) {
        Real total = 0;
        if (end - begin < 2 * kLanes<Real>) {  // most are short: the sums of several then go on side by side
            for (Index j = begin; j < end; ++j) total += grad_scores[j];
        } else {
#pragma omp simd reduction(+ : total)
            for (Index j = begin; j < end; ++j) total += grad_scores[j];
        }
        out[bucket] = total;
    });
}

template <class Real> Real exponentials(Real* scores, Index count, Real top) {
    Real total = 0;
#pragma omp simd reduction(+ : total)
    for (Index j = 0; j < count; ++j) {
        scores[j] = exponential(scores[j] - top);
        total += scores[j];
    }
    return total;
}

template <class Stored, class Real, int Vectors>
void attend(const Model<Real>& model, const Segment<Real>& segment, Index layer, Index pair, Real* weights) {
    const Index width = model.width, slots = model.slots, local = segment.local, columns = slots + local;
    const Index masked = segment.masked_slots, seen = slots - masked, all = seen + local;
    const Stored* keys = static_cast<const Stored*>(segment.keys) + pair * model.pair_stride + masked * width;
    const Stored* values = static_cast<const Stored*>(segment.values) + pair * model.pair_stride + masked * width;
    const Index group = pair % model.groups, first_row = pair / model.groups * segment.length;
    const Real* local_keys = local ? segment.local_kv[layer] + first_row * model.kv() + group * width : nullptr;
    for (Index query = 0; query < model.heads_per_group * segment.length; ++query) {
        const Query<Real> at(model, segment.length, pair, query);
        const Real* q = segment.q[layer] + at.row;
        Real* p = segment.probabilities[layer] + at.head * columns;
        std::fill_n(p, masked, Real(0));
        Real* scores = p + masked;
        dots<Real, Vectors>(q, keys, width, seen, width, scores, query ? nullptr : values);
        if (local) dots<Real, Vectors>(q, local_keys, model.kv(), local, width, scores + seen);
        if (model.position) add_position(model, q, slots + query % segment.length, masked, columns, p);
        if (segment.bias) {
            const Real* bias = segment.bias + at.head * columns + masked;
#pragma omp simd
            for (Index j = 0; j < all; ++j) scores[j] += bias[j];
        }
        Real top = -HUGE_VAL;
#pragma omp simd reduction(max : top)
        for (Index j = 0; j < all; ++j) top = scores[j] > top ? scores[j] : top;
        const Real scale = 1 / exponentials(scores, all, top);
        const Real* mask = segment.probabilities_mask[layer];
        if (mask) mask += at.head * columns + masked;
        for (Index j = 0; j < all; ++j) scores[j] *= scale;
        if (mask) {
            for (Index j = 0; j < all; ++j) weights[j] = scores[j] * mask[j];
        }
        const Real* used = mask ? weights : scores;
        Real* out = segment.out[layer] + at.row;
        std::fill_n(out, width, Real(0));
        weighted<Real, Vectors>(used, 1, values, width, seen, width, out, query ? nullptr : keys + model.pair_stride);
        if (local) weighted<Real, Vectors>(used + seen, 1, local_keys + model.groups * width, model.kv(), local, width, out);
    }
}

template <class Stored, class Real, int Vectors>
void attend_backward(const Team& team, const Model<Real>& model, const Backward<Real>& at_step, Index layer, Index pair,
                     Real* weights) {
    const Segment<Real>& segment = at_step.segment;
    const Index width = model.width, slots = model.slots, local = segment.local, columns = slots + local;
    const Index masked = segment.masked_slots, seen = slots - masked, all = seen + local;
    const Index queries = model.heads_per_group * segment.length;
    const Stored* keys = static_cast<const Stored*>(segment.keys) + pair * model.pair_stride + masked * width;
    const Stored* values = static_cast<const Stored*>(segment.values) + pair * model.pair_stride + masked * width;
    const Index group = pair % model.groups, first_row = pair / model.groups * segment.length;
    const Index local_offset = first_row * model.kv() + group * width, local_values = model.groups * width;
    const Real* local_keys = local ? segment.local_kv[layer] + local_offset : nullptr;
    Real* grad_local = local ? at_step.grad_local[layer] + local_offset : nullptr;
    for (Index j = 0; j < local; ++j) {
        std::fill_n(grad_local + j * model.kv(), width, Real(0));
        std::fill_n(grad_local + j * model.kv() + local_values, width, Real(0));
    }
    for (Index query = 0; query < queries; ++query) {
        const Query<Real> at(model, segment.length, pair, query);
        const Real *q = segment.q[layer] + at.row, *grad = at_step.grad_out + at.row;
        const Real* p = segment.probabilities[layer] + at.head * columns + masked;
        const Real* mask = segment.probabilities_mask[layer];
        if (mask) mask += at.head * columns + masked;
        Real* scores = at_step.grad_scores[layer] + at.head * columns;
        std::fill_n(scores, masked, Real(0));
        scores += masked;
        dots<Real, Vectors>(grad, values, width, seen, width, scores, query ? nullptr : keys);
        if (local) dots<Real, Vectors>(grad, local_keys + local_values, model.kv(), local, width, scores + seen);
        for (Index j = 0; j < all; ++j) weights[j] = mask ? p[j] * mask[j] : p[j];
        Real along = 0;
#pragma omp simd reduction(+ : along)
        for (Index j = 0; j < all; ++j) along += scores[j] * weights[j];
#pragma omp simd
        for (Index j = 0; j < all; ++j) scores[j] = scores[j] * weights[j] - along * p[j];
        if (at_step.grad_bias) {
            Real* to = at_step.grad_bias + team.me * at_step.grad_bias_stride + (group * queries + query) * columns + masked;
#pragma omp simd
            for (Index j = 0; j < all; ++j) to[j] += scores[j];
        }
        Real* grad_q = at_step.grad_q[layer] + at.row;
        std::fill_n(grad_q, width, Real(0));
        weighted<Real, Vectors>(scores, 1, keys, width, seen, width, grad_q, query ? nullptr : values + model.pair_stride);
        if (local) weighted<Real, Vectors>(scores + seen, 1, local_keys, model.kv(), local, width, grad_q);
        if (model.position) {
            Real* products = at_step.grad_products[layer] + at.row / width * kBuckets;
            position_backward(model, slots + query % segment.length, masked, columns, scores - masked, products);
            weighted<Real, Vectors>(products, 1, model.position, width, kBuckets, width, grad_q);
        }
        for (Index j = 0; j < local; ++j) {
            Real* to = grad_local + j * model.kv();
            weighted<Real, Vectors>(scores + seen + j, 1, q, width, 1, width, to);
            weighted<Real, Vectors>(weights + seen + j, 1, grad, width, 1, width, to + local_values);
        }
        // For the gradients of keys and values: both weights, and what they multiply.
        const Index line = ((pair * at_step.places + at_step.place) * model.layers + layer) * queries + query;
        const Index half = model.pairs() * at_step.places * model.layers * queries;
        Real* band = at_step.grad_scores_band + line * at_step.columns + at_step.place * segment.length;
        std::fill_n(band, masked, Real(0));
        std::copy_n(scores, seen, band + masked);
        band += half * at_step.columns;
        std::fill_n(band, masked, Real(0));
        std::copy_n(weights, seen, band + masked);
        std::copy_n(q, width, at_step.operands + line * width);
        std::copy_n(grad, width, at_step.operands + (half + line) * width);
    }
}

// Writes the finished gradient of the keys and values that the segment stored: what `total` holds, and what the later
// segments of its block give.
template <class Real> void slot_gradient(const Team& team, const Model<Real>& model, const Backward<Real>& at) {
    const Index width = model.width, length = at.segment.length, queries = model.heads_per_group * length;
    const Index lines = at.places * model.layers * queries, later = (at.place + 1) * model.layers * queries;
    const auto [begin, end] = team.share(2 * model.pairs());
    for (Index half_pair = begin; half_pair < end; ++half_pair) {
        const Index half = half_pair / model.pairs(), pair = half_pair % model.pairs();
        const Real* weights = at.grad_scores_band + (half_pair * lines + later) * at.columns + model.slots + at.place * length;
        const Real* rows = at.operands + (half_pair * lines + later) * width;
        for (Index token = 0; token < length; ++token) {
            Real* to = at.grad_kv + (pair / model.groups * length + token) * model.kv() +
                       (half * model.groups + pair % model.groups) * width;
            std::copy_n(at.total + half * at.total_stride + pair * model.pair_stride + token * width, width, to);
            with_vectors<Real, Real>(width, [&](auto vectors) {
                weighted<Real, decltype(vectors)::value>(weights + token, at.columns, rows, width, lines - later, width, to);
            });
        }
    }
}

// out (count, width) += weights (lines, columns)^T times rows (lines, width).
template <class Real, int Vectors>
void transposed_product(const Real* weights, Index columns, const Real* rows, Index lines, Index count, Index width, Real* out) {
    Index j = 0;
    if constexpr (Vectors > 0) {
        constexpr int block = 2 * kTileRows / Vectors;
        static_assert(block > 0);
        for (; j + block <= count; j += block) {
            Vector<Real> totals[block][Vectors];
            for (int row = 0; row < block; ++row) {
                for (int v = 0; v < Vectors; ++v) totals[row][v] = load<Real>(out + (j + row) * width + v * kLanes<Real>);
            }
            for (Index line = 0; line < lines; ++line) {
                Vector<Real> with[Vectors];
                for (int v = 0; v < Vectors; ++v) with[v] = load<Real>(rows + line * width + v * kLanes<Real>);
#pragma GCC unroll 24
                for (int row = 0; row < block; ++row) {
                    for (int v = 0; v < Vectors; ++v) totals[row][v] += weights[line * columns + j + row] * with[v];
                }
            }
            for (int row = 0; row < block; ++row) {
                for (int v = 0; v < Vectors; ++v) store<Real>(out + (j + row) * width + v * kLanes<Real>, totals[row][v]);
            }
        }
    }
    for (; j < count; ++j) weighted<Real, Vectors>(weights + j, columns, rows, width, lines, width, out + j * width);
}

// ---- The steps ----

template <class Weight, class Real> void forward(const Team& team, const Model<Real>& model, const Forward<Real>& at) {
    const Segment<Real>& segment = at.segment;
    const Index dim = model.dim, rows = model.batch * segment.length, hidden = model.hidden;
    Real* weights = segment.weights + team.me * (model.slots + segment.local);
    for (Index layer = 0; layer < model.layers; ++layer) {
        const Block<Real>& block = model.blocks[layer];
        const Real* below = at.states[layer];
        norm(team, block.norm_attention, below, rows, dim, at.normed);
        team.barrier();
        product_to<Weight>(team, at.normed, rows, block.to_q, segment.q[layer]);
        if (segment.local) product_to<Weight>(team, at.normed, rows, model.to_kv, segment.local_kv[layer]);
        team.barrier();
        const auto [begin, end] = team.share(model.pairs());
        with_vectors<Stored<Weight>, Real>(model.width, [&, begin = begin, end = end](auto vectors) {
            for (Index pair = begin; pair < end; ++pair) {
                attend<Stored<Weight>, Real, decltype(vectors)::value>(model, segment, layer, pair, weights);
            }
        });
        team.barrier();
        Real* middle = at.middle[layer];
        product<Weight, Real, 1>(team, segment.out[layer], rows, {block.to_out},
                                 [&](Index row, Index column, Index count, auto& found) {
            const bool has_keys = !segment.has_keys || segment.has_keys[row];
            const Index first = row * dim + column;
            for (Index i = 0; i < count; ++i) middle[first + i] = below[first + i] + (has_keys ? found[0][i] : 0);
        });
        team.barrier();
        norm(team, block.norm_feedforward, middle, rows, dim, at.normed);
        team.barrier();
        Real* gated = at.hidden[layer];
        const Real* mask = at.hidden_mask[layer];
        product<Weight, Real, 2>(team, at.normed, rows, {block.value, block.gate},
                                 [&](Index row, Index column, Index count, auto& found) {
            const Index first = row * hidden + column;
            std::copy_n(found[0], count, gated + row * 2 * hidden + column);
            std::copy_n(found[1], count, gated + row * 2 * hidden + hidden + column);
            Real *value = found[0], *gate = found[1], *to = at.product + first;
#pragma omp simd
            for (Index i = 0; i < count; ++i) to[i] = normal_cdf(gate[i]) * gate[i] * value[i];
            if (mask) {
                for (Index i = 0; i < count; ++i) to[i] *= mask[first + i];
            }
        });
        team.barrier();
        Real* above = at.states[layer + 1];
        product<Weight, Real, 1>(team, at.product, rows, {block.from_hidden},
                                 [&](Index row, Index column, Index count, auto& found) {
            const Index first = row * dim + column;
            for (Index i = 0; i < count; ++i) above[first + i] = middle[first + i] + found[0][i];
        });
        team.barrier();
    }
    const Real* stored = at.states[model.layers];
    if (model.mix) {
        const auto [begin, end] = team.share(rows * dim);
        std::fill(at.normed + begin, at.normed + end, Real(0));
        for (Index layer = 0; layer <= model.layers; ++layer) {
            const Real *state = at.states[layer], weight = model.mix[layer];
            for (Index i = begin; i < end; ++i) at.normed[i] += weight * state[i];
        }
        stored = at.normed;
        team.barrier();
    }
    if (model.memory_norm) {
        norm(team, *model.memory_norm, stored, rows, dim, at.product);
        stored = at.product;
        team.barrier();
    }
    product_to<Weight>(team, stored, rows, model.to_kv, at.kv);
    team.barrier();
    const auto [begin, end] = team.share(rows);
    for (Index row = begin; row < end; ++row) {
        for (Index group = 0; group < model.groups; ++group) {
            const Index pair = row / segment.length * model.groups + group;
            const Index slot = pair * model.pair_stride + row % segment.length * model.width;
            const Real* from = at.kv + row * model.kv() + group * model.width;
            auto* keys = static_cast<Stored<Weight>*>(at.new_keys) + slot;
            auto* values = static_cast<Stored<Weight>*>(at.new_values) + slot;
            for (Index e = 0; e < model.width; ++e) {
                round_to(keys[e], from[e]);
                round_to(values[e], from[model.groups * model.width + e]);
            }
        }
    }
}

template <class Weight, class Real> void backward(const Team& team, const Model<Real>& model, const Backward<Real>& at) {
    const Segment<Real>& segment = at.segment;
    const Index dim = model.dim, rows = model.batch * segment.length, hidden = model.hidden;
    Real* weights = segment.weights + team.me * (model.slots + segment.local);
    const auto [first_row, last_row] = team.share(rows);
    slot_gradient(team, model, at);
    team.barrier();
    product_to<Weight>(team, at.grad_kv, rows, model.to_kv, at.grad_mixed);
    team.barrier();
    for (Index row = first_row; row < last_row; ++row) {
        Real *mixed = at.grad_mixed + row * dim, *top = at.grad_states[model.layers] + row * dim;
        if (model.memory_norm) {
            norm_backward(*model.memory_norm, mixed, at.mixed + row * dim, at.mixed_mean[row], at.mixed_rstd[row], dim,
                          mixed);
        }
        const Real weight = model.mix ? model.mix[model.layers] : 1;
        for (Index i = 0; i < dim; ++i) top[i] = at.grad_top[row * dim + i] + weight * mixed[i];
    }
    team.barrier();
    for (Index layer = model.layers; layer-- > 0;) {
        const Block<Real>& block = model.blocks[layer];
        const Real* grad = at.grad_states[layer + 1];
        Real* grad_hidden = at.grad_hidden[layer];
        product<Weight, Real, 1>(team, grad, rows, {block.from_hidden},
                                 [&](Index row, Index column, Index count, auto& found) {
            const Index first = row * 2 * hidden + column;
            const Real *value = at.hidden[layer] + first, *gate = value + hidden, *mask = at.hidden_mask[layer];
            Real *grad_value = grad_hidden + first, *grad_gate = grad_value + hidden;
            Real *to = at.product[layer] + row * hidden + column, *grad_to = found[0];
            if (mask) {
                mask += row * hidden + column;
                for (Index i = 0; i < count; ++i) grad_to[i] *= mask[i];
            }
#pragma omp simd
            for (Index i = 0; i < count; ++i) {
                const Real below = normal_cdf(gate[i]), gelu = below * gate[i];
                to[i] = gelu * value[i];
                grad_value[i] = grad_to[i] * gelu;
                grad_gate[i] = grad_to[i] * value[i] * (below + gate[i] * normal_pdf(gate[i]));
            }
            if (mask) {
                for (Index i = 0; i < count; ++i) to[i] *= mask[i];
            }
        });
        team.barrier();
        product_to<Weight>(team, grad_hidden, rows, block.value, at.grad_normed_f[layer]);
        team.barrier();
        for (Index row = first_row; row < last_row; ++row) {
            const Index first = row * dim;
            Real *whole = at.grad_middle_whole + first, *through = at.grad_middle[layer] + first;
            norm_backward(block.norm_feedforward, at.grad_normed_f[layer] + first, at.middle[layer] + first,
                          at.mean_f[layer][row], at.rstd_f[layer][row], dim, whole);
            const bool has_keys = !segment.has_keys || segment.has_keys[row];
            for (Index i = 0; i < dim; ++i) {
                whole[i] += grad[first + i];
                through[i] = has_keys ? whole[i] : 0;
            }
        }
        team.barrier();
        product_to<Weight>(team, at.grad_middle[layer], rows, block.to_out, at.grad_out);
        team.barrier();
        const auto [begin, end] = team.share(model.pairs());
        with_vectors<Stored<Weight>, Real>(model.width, [&, begin = begin, end = end](auto vectors) {
            for (Index pair = begin; pair < end; ++pair) {
                attend_backward<Stored<Weight>, Real, decltype(vectors)::value>(team, model, at, layer, pair, weights);
            }
        });
        team.barrier();
        product_to<Weight>(team, at.grad_q[layer], rows, block.to_q, at.grad_normed_a[layer]);
        if (segment.local) {  // each member adds to the columns it has just written
            product<Weight, Real, 1>(team, at.grad_local[layer], rows, {model.to_kv},
                                     [&](Index row, Index column, Index count, auto& found) {
                Real* to = at.grad_normed_a[layer] + row * dim + column;
                for (Index i = 0; i < count; ++i) to[i] += found[0][i];
            });
        }
        team.barrier();
        const Real weight = model.mix ? model.mix[layer] : 0;
        for (Index row = first_row; row < last_row; ++row) {
            const Index first = row * dim;
            Real* below = at.grad_states[layer] + first;
            norm_backward(block.norm_attention, at.grad_normed_a[layer] + first, at.states[layer] + first,
                          at.mean_a[layer][row], at.rstd_a[layer][row], dim, below);
            for (Index i = 0; i < dim; ++i) below[i] += at.grad_middle_whole[first + i] + weight * at.grad_mixed[first + i];
        }
        team.barrier();
    }
}

// Gives the slots before a block what all its queries owe them. `at` is that of the block's first segment.
template <class Real> void end_block(const Team& team, const Model<Real>& model, const Backward<Real>& at) {
    const Index lines = at.places * model.layers * model.heads_per_group * at.segment.length;
    const auto [begin, end] = team.share(2 * model.pairs());
    for (Index half_pair = begin; half_pair < end; ++half_pair) {
        const Index half = half_pair / model.pairs(), pair = half_pair % model.pairs();
        Real* to = at.total + half * at.total_stride + pair * model.pair_stride - model.slots * model.width;
        with_vectors<Real, Real>(model.width, [&](auto vectors) {
            transposed_product<Real, decltype(vectors)::value>(
                at.grad_scores_band + half_pair * lines * at.columns, at.columns, at.operands + half_pair * lines * model.width, lines,
                model.slots, model.width, to);
        });
    }
}

// ---- Packing ----

// The place in a panel of what an output takes from an input.
template <class Weight, class Real> Weight& place_in(Weight* panel, Index input, Index output) {
    constexpr Index lanes = kLanes<Real>;
    if constexpr (std::is_same_v<Weight, Bf16>) output = output < lanes ? 2 * output : 2 * (output - lanes) + 1;
    return panel[input * kPanel<Real> + output];
}
template <class Weight, class Real> Bf16& place_in(Bf16Pair* panel, Index input, Index output) {
    Bf16Pair& pair = panel[input / 2 * kPanel<Real> + output];
    return input % 2 ? pair.odd : pair.even;
}

// A weight (out, in) with any strides, times `scale`, into panels.
template <class Weight, class Real>
void pack(const Real* from, Index out, Index in, Index out_stride, Index in_stride, double scale, Weight* to, Index threads) {
    constexpr Index depth = 16;  // numbers of a row that lie in one line
    const Index panels = (out + kPanel<Real> - 1) / kPanel<Real>;
#pragma omp parallel for num_threads(int(threads))
    for (Index panel = 0; panel < panels; ++panel) {
        constexpr bool in_pairs = std::is_same_v<Weight, Bf16Pair>;
        Weight* target = to + panel * (in_pairs ? (in + 1) / 2 : in) * kPanel<Real>;
        const Index first = panel * kPanel<Real>, count = std::min<Index>(kPanel<Real>, out - first);
        for (Index k = 0; k < in; k += depth) {
            const Index last = std::min(in, k + depth);
            for (Index column = 0; column < kPanel<Real>; ++column) {
                for (Index i = k; i < last; ++i) {
                    const Real value = column < count ? from[(first + column) * out_stride + i * in_stride] : 0;
                    round_to(place_in<Weight, Real>(target, i, column), Real(value * Real(scale)));
                }
                if (in_pairs && last == in && in % 2) round_to(place_in<Weight, Real>(target, in, column), Real(0));
            }
        }
    }
}

template <class Step> void in_team(Index threads, Step step) {
#pragma omp parallel num_threads(int(threads))
    step(Team{omp_get_thread_num(), omp_get_num_threads()});
}

}  // namespace

#define EXPORT(NAME, WEIGHT, REAL)                                                                              \
    extern "C" int64_t panel_##NAME() { return kPanel<REAL>; }                                                  \
    extern "C" void pack_##NAME(const REAL* from, Index out, Index in, Index out_stride, Index in_stride,       \
                                double scale, WEIGHT* to, Index threads) {                                      \
        pack<WEIGHT, REAL>(from, out, in, out_stride, in_stride, scale, to, threads);                           \
    }                                                                                                           \
    extern "C" void forward_##NAME(const Model<REAL>* model, const Forward<REAL>* at) {                         \
        in_team(model->threads, [=](const Team& team) { forward<WEIGHT, REAL>(team, *model, *at); });           \
    }                                                                                                           \
    extern "C" void backward_##NAME(const Model<REAL>* model, const Backward<REAL>* at) {                       \
        in_team(model->threads, [=](const Team& team) { backward<WEIGHT, REAL>(team, *model, *at); });          \
    }                                                                                                           \
    extern "C" void end_block_##NAME(const Model<REAL>* model, const Backward<REAL>* at) {                      \
        in_team(model->threads, [=](const Team& team) { end_block<REAL>(team, *model, *at); });                 \
    }

EXPORT(float32, float, float)
EXPORT(float64, double, double)
EXPORT(bfloat16, Bf16, float)

#if defined(__AVX512BF16__)
EXPORT(bfloat16_pairs, Bf16Pair, float)
extern "C" Index multiplies_bf16() { return 1; }
#else
extern "C" Index multiplies_bf16() { return 0; }
#endif

extern "C" Index most_rows() { return kMostRows; }
extern "C" Index bytes_to_stream() { return kBytesToStream; }

// So that a test can tell that Python's structures are these.
extern "C" Index size_of_model() { return sizeof(Model<float>); }
extern "C" Index size_of_block() { return sizeof(Block<float>); }
extern "C" Index size_of_forward() { return sizeof(Forward<float>); }
extern "C" Index size_of_backward() { return sizeof(Backward<float>); }
