// Packs weights in panels. A panel holds the weights from all inputs to as many outputs as fill two vectors, in the
// order in which a product reads them. bf16 is stored as `load_two` expects it.

#pragma once

#include <omp.h>

#include <algorithm>
#include <type_traits>

#include "numbers.h"
#include "vectors.h"

namespace {

// The number of outputs of a panel.
template <class Real> constexpr int kPanel = 2 * kLanes<Real>;

// The weight from an input to an output in a panel.
template <class Weight, class Real> Weight& packed_element(Weight* panel, Index input, Index output) {
    constexpr Index lanes = kLanes<Real>;
    if constexpr (std::is_same_v<Weight, Bf16>) output = output < lanes ? 2 * output : 2 * (output - lanes) + 1;
    return panel[input * kPanel<Real> + output];
}
template <class Weight, class Real> Bf16& packed_element(Bf16Pair* panel, Index input, Index output) {
    Bf16Pair& pair = panel[input / 2 * kPanel<Real> + output];
    return input % 2 ? pair.odd : pair.even;
}

// Packs a weight (out, in) with any strides, times `scale`, into panels. The last panel is padded with zeros.
template <class Weight, class Real>
void pack(const Real* from, Index out, Index in, Index out_stride, Index in_stride, double scale, Weight* to,
          Index threads) {
    constexpr Index depth = 16;  // numbers of a row that share a cache line, in float32
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
                    round_to(packed_element<Weight, Real>(target, i, column), Real(value * Real(scale)));
                }
                if (in_pairs && last == in && in % 2) {
                    round_to(packed_element<Weight, Real>(target, in, column), Real(0));
                }
            }
        }
    }
}

}  // namespace
