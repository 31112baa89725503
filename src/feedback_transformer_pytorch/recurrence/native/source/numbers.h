// The number types, and conversions between them.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

using Index = int64_t;

struct Bf16 {
    uint16_t bits;
};

// Two consecutive inputs of a weight, or of what it is multiplied by: an operand of a bf16 dot product.
struct Bf16Pair {
    Bf16 even, odd;
};

// The type of the memory's keys and values for weights of a type.
template <class Weight> struct StoredOf {
    using type = Weight;
};
template <> struct StoredOf<Bf16Pair> {
    using type = Bf16;
};
template <class Weight> using Stored = typename StoredOf<Weight>::type;

inline float to_float(Bf16 number) {
    const uint32_t bits = uint32_t(number.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline float to_float(float number) { return number; }
inline double to_float(double number) { return number; }

inline void round_to(float& to, float value) { to = value; }
inline void round_to(double& to, double value) { to = value; }
inline void round_to(int8_t& to, float whole) { to = int8_t(whole); }
inline void round_to(Bf16& to, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    // To nearest, ties to even; NaN stays NaN.
    to.bits = value == value ? uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16) : 0x7fc0;
}

}  // namespace
