// Elementwise functions, in a form that compilers vectorise.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

// e^x for x <= 0, as 2^n e^rest, where |rest| <= ln(2)/2 and e^rest is a series.
template <class Real> Real exponential(Real x) {
    constexpr bool is_float = std::is_same_v<Real, float>;
    using Bits = std::conditional_t<is_float, int32_t, int64_t>;
    constexpr int mantissa = is_float ? 23 : 52, bias = is_float ? 127 : 1023, terms = is_float ? 7 : 13;
    constexpr Real to_whole = Real(3) * (Bits(1) << (mantissa - 1));  // adding and subtracting it rounds to an integer
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

// The error function. For float it uses two interpolating polynomials: erf(x) / x in x^2 for |x| < 1, and
// -log(erfc(|x|)) for |x| up to 4. Beyond 4 it is 1 or -1. The error is less than 2e-7.
inline double error_function(double x) { return std::erf(x); }
inline float error_function(float x) {
    constexpr float near[] = {1.1283791f,    -0.37612626f,    0.11283594f,   -0.026854211f,
                              0.0051890872f, -0.00080168643f, 7.8758749e-05f};
    constexpr float far[] = {-0.00032013806f, 1.1302334f,     0.63182604f,    0.11008009f,    -0.026421135f,
                             0.0047595962f,   -0.0005968058f, 4.6058045e-05f, -1.6371514e-06f};
    const float size = std::fabs(x), square = size * size, capped = size > 4 ? 4 : size;
    float below = 0, above = 0;
#pragma GCC unroll 7
    for (int power = 6; power >= 0; --power) below = below * square + near[power];
#pragma GCC unroll 9
    for (int power = 8; power >= 0; --power) above = above * capped + far[power];
    return size < 1 ? x * below : std::copysign(1 - exponential(-above), x);
}

// The standard normal distribution. gelu(x) is x * normal_cdf(x).
template <class Real> Real normal_cdf(Real x) {
    return Real(0.5) * (1 + error_function(x * Real(0.70710678118654752440)));
}
template <class Real> Real normal_pdf(Real x) { return Real(0.39894228040143267794) * exponential(Real(-0.5) * x * x); }

}  // namespace
