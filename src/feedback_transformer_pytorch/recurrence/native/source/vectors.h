// Vectors as wide as the processor's registers, in the vector extensions of GCC and Clang.

#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "numbers.h"

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Bytes of a cache line.
constexpr Index kLine = 64;
// How many vectors of sums fit into the registers beside the vectors that are multiplied.
constexpr int kAccumulators = kVectorBytes == 64 ? 24 : 12;

template <class Real> constexpr int kLanes = kVectorBytes / int(sizeof(Real));

template <class Real, int Lanes> struct VectorOf {
    typedef Real type __attribute__((vector_size(Lanes * sizeof(Real))));
};
template <class Real> using Vector = typename VectorOf<Real, kLanes<Real>>::type;

template <class Real> Vector<Real> load(const Real* from) {
    Vector<Real> vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

template <class Real> void store(Real* to, const Vector<Real>& vector) { std::memcpy(to, &vector, sizeof vector); }

// Lane i of the result is lane source(i) of a followed by b.
template <class Real, class Source, int... Lane>
Vector<Real> shuffle(const Vector<Real>& a, const Vector<Real>& b, Source source, std::integer_sequence<int, Lane...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, source(Lane)...);
#else
    constexpr Vector<std::conditional_t<sizeof(Real) == 4, int32_t, int64_t>> lanes = {source(Lane)...};
    return __builtin_shuffle(a, b, lanes);
#endif
}
template <class Real, class Source> Vector<Real> shuffle(const Vector<Real>& a, const Vector<Real>& b, Source source) {
    return shuffle<Real>(a, b, source, std::make_integer_sequence<int, kLanes<Real>>());
}

// Sources for `shuffle`: the even or the odd lanes of a and b; the low or the high lanes of a and b, interleaved.
constexpr auto kEven = [](int lane) { return 2 * lane; };
constexpr auto kOdd = [](int lane) { return 2 * lane + 1; };
template <class Real> constexpr auto kInterleaveLow = [](int lane) { return lane / 2 + lane % 2 * kLanes<Real>; };
template <class Real>
constexpr auto kInterleaveHigh = [](int lane) { return (kLanes<Real> + lane) / 2 + lane % 2 * kLanes<Real>; };

// Sums the lanes of each of `Count` vectors. Lane i of the result is the sum of vectors[i]. Overwrites the vectors.
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

// Loads two vectors of consecutive numbers.
template <class Real> void load_two(const Real* from, Vector<Real>* to) {
    to[0] = load<Real>(from);
    to[1] = load<Real>(from + kLanes<Real>);
}

// Loads two vectors of bf16. A word holds two: the low half goes to the first vector, the high half to the second.
inline void load_two(const Bf16* from, Vector<float>* to) {
    typedef VectorOf<uint32_t, kLanes<float>>::type Words;
    Words words;
    std::memcpy(&words, from, sizeof words);
    to[0] = (Vector<float>)(words << 16);
    to[1] = (Vector<float>)(words & 0xffff0000u);
}

// Loads a vector of int8. Without intrinsics GCC 12 converts them one by one.
inline Vector<float> load_as_float(const int8_t* from) {
#if defined(__AVX512F__)
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return (Vector<float>)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
#elif defined(__AVX2__)
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return (Vector<float>)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
#else
    VectorOf<int8_t, kLanes<float>>::type bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector(bytes, Vector<float>);
#endif
}

// Loads two vectors of int8.
inline void load_two(const int8_t* from, Vector<float>* to) {
    to[0] = load_as_float(from);
    to[1] = load_as_float(from + kLanes<float>);
}

#if defined(__AVX512BF16__)
// Loads pairs without converting them. The vectors' type is only nominal: `Totals::add` reads pairs from them.
inline void load_two(const Bf16Pair* from, Vector<float>* to) { std::memcpy(to, from, 2 * sizeof(Vector<float>)); }
#endif

}  // namespace
