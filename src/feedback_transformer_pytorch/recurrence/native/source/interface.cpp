// The functions that Python calls through ctypes. This is the kernel's only translation unit; the rest is in headers.
//
// The kernel walks a segment through all layers in one call, forward or backward, on a CPU. It computes the same as
// `engine/torch_steps.py` and is independent of torch. It needs OpenMP, and the vector extensions of GCC or Clang.

#include <cstdint>

#include "backward.h"
#include "forward.h"
#include "key_value_gradient.h"
#include "numbers.h"
#include "pack.h"
#include "packed_products.h"
#include "structures.h"
#include "team.h"

// A walk forward with weights of type WEIGHT, keys and values of type STORED in the memory, and REAL for all else.
#define EXPORT_FORWARD(NAME, WEIGHT, STORED, REAL)                                                               \
    extern "C" int64_t panel_##NAME() { return kPanel<REAL>; }                                                   \
    extern "C" void pack_##NAME(const REAL* from, Index out, Index in, Index out_stride, Index in_stride,        \
                                double scale, WEIGHT* to, Index threads) {                                       \
        pack<WEIGHT, REAL>(from, out, in, out_stride, in_stride, scale, to, threads);                            \
    }                                                                                                            \
    extern "C" void forward_##NAME(const Model<REAL>* model, const Forward<REAL>* step) {                        \
        in_team(model->threads, [=](const Team& team) { forward<WEIGHT, STORED, REAL>(team, *model, *step); });  \
    }

// Both directions.
#define EXPORT(NAME, WEIGHT, REAL)                                                                        \
    EXPORT_FORWARD(NAME, WEIGHT, Stored<WEIGHT>, REAL)                                                    \
    extern "C" void backward_##NAME(const Model<REAL>* model, const Backward<REAL>* step) {               \
        in_team(model->threads, [=](const Team& team) { backward<WEIGHT, REAL>(team, *model, *step); });  \
    }                                                                                                     \
    extern "C" void end_strip_##NAME(const Model<REAL>* model, const Backward<REAL>* step) {              \
        in_team(model->threads, [=](const Team& team) { end_strip<REAL>(team, *model, *step); });         \
    }

// A walk forward with rounded weights, and their product with x (R, in) alone.
#define EXPORT_ROUNDED(NAME, WEIGHT)                                                                            \
    EXPORT_FORWARD(NAME, WEIGHT, float, float)                                                                  \
    extern "C" void product_##NAME(const PackedLinear<float>* linear, const float* x, Index rows, float* out,   \
                                   Index threads) {                                                             \
        in_team(threads, [=](const Team& team) { product_to<WEIGHT>(team, x, rows, *linear, out); });           \
    }

EXPORT(float32, float, float)
EXPORT(float64, double, double)
EXPORT(bfloat16, Bf16, float)
EXPORT_ROUNDED(bfloat16_weights, Bf16)
EXPORT_ROUNDED(int8_weights, int8_t)

#if defined(__AVX512BF16__)
EXPORT(bfloat16_pairs, Bf16Pair, float)
extern "C" Index multiplies_bf16() { return 1; }
#else
extern "C" Index multiplies_bf16() { return 0; }
#endif

extern "C" Index most_rows() { return kMostRows; }
extern "C" Index bytes_to_stream() { return kBytesToStream; }

// A test compares these with Python's structures.
extern "C" Index size_of_model() { return sizeof(Model<float>); }
extern "C" Index size_of_layer_weights() { return sizeof(LayerWeights<float>); }
extern "C" Index size_of_forward() { return sizeof(Forward<float>); }
extern "C" Index size_of_backward() { return sizeof(Backward<float>); }
