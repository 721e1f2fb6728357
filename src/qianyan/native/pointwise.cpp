// What lies between the products: norms, rotations and activations of bfloat16 rows, each in one pass over memory.
//
// Where PyTorch rounds to bfloat16 between two operations, so is rounded here: the same numbers come out, but for the
// last bit where a sum was taken in another order.

#include <immintrin.h>

#include <cmath>
#include <cstdint>

// Nothing else of this library is seen from outside.
#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int64_t LANES = 16;
constexpr int64_t FEW = 1 << 14;  // numbers that are done before other threads have woken up
constexpr float LOG2_E = 1.44269504f;

inline __m512 load(const uint16_t *from, __mmask16 there = 0xffff) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

inline void store(uint16_t *to, __m512 value, __mmask16 there = 0xffff) {
    _mm256_mask_storeu_epi16(to, there, (__m256i)_mm512_cvtneps_pbh(value));
}

inline __m512 rounded(__m512 value) {
    const __m512i wide = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(value));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

inline __mmask16 lanes(int64_t left) { return left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1); }

// 1 / (1 + exp(-x)) to 1e-6.
inline __m512 sigmoid(__m512 x) {
    const __m512 limit = _mm512_set1_ps(126.0f);
    __m512 power = _mm512_mul_ps(x, _mm512_set1_ps(-LOG2_E));
    power = _mm512_max_ps(_mm512_min_ps(power, limit), _mm512_sub_ps(_mm512_setzero_ps(), limit));
    const __m512 whole = _mm512_roundscale_ps(power, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 part = _mm512_sub_ps(power, whole);
    __m512 y = _mm512_set1_ps(1.5403530e-4f);  // the series of exp(x log 2)
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(1.3333558e-3f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(9.6181291e-3f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(5.5504109e-2f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(2.4022651e-1f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(6.9314718e-1f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(1.0f));
    const __m512 one = _mm512_set1_ps(1.0f);
    return _mm512_div_ps(one, _mm512_add_ps(one, _mm512_scalef_ps(y, whole)));
}

}  // namespace

// out (tokens, columns) = hidden over its root mean square, rounded, times weight (columns,).
EXPORT int qianyan_rms_norm(const uint16_t *hidden, const uint16_t *weight, uint16_t *out, int64_t tokens,
                            int64_t columns, int64_t stride, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (tokens * columns > FEW)
    for (int64_t t = 0; t < tokens; ++t) {
        const uint16_t *from = hidden + t * stride;
        __m512 squares = _mm512_setzero_ps();
        for (int64_t c = 0; c < columns; c += LANES) {
            const __m512 value = load(from + c, lanes(columns - c));
            squares = _mm512_fmadd_ps(value, value, squares);
        }
        const float mean = _mm512_reduce_add_ps(squares) / static_cast<float>(columns);
        const __m512 by = _mm512_set1_ps(1.0f / std::sqrt(mean + eps));
        for (int64_t c = 0; c < columns; c += LANES) {
            const __mmask16 there = lanes(columns - c);
            const __m512 normed = rounded(_mm512_mul_ps(load(from + c, there), by));
            store(out + t * columns + c, _mm512_mul_ps(normed, load(weight + c, there)), there);
        }
    }
    return 0;
}

// out (tokens, heads, dim): element i of a head turns together with element i + dim / 2; cosines and sines are float32
// (tokens, dim / 2), strides of tokens and heads in numbers.
EXPORT int qianyan_rotate(const uint16_t *heads, const float *cosines, const float *sines, uint16_t *out,
                          int64_t tokens, int64_t count, int64_t dim, int64_t token_stride, int64_t head_stride,
                          int threads) {
    const int64_t half = dim / 2;
#pragma omp parallel for num_threads(threads) if (tokens * count * dim > FEW)
    for (int64_t t = 0; t < tokens; ++t)
        for (int64_t h = 0; h < count; ++h) {
            const uint16_t *from = heads + t * token_stride + h * head_stride;
            uint16_t *to = out + (t * count + h) * dim;
            for (int64_t i = 0; i < half; i += LANES) {
                const __mmask16 there = lanes(half - i);
                const __m512 first = load(from + i, there), second = load(from + half + i, there);
                const __m512 cosine = _mm512_maskz_loadu_ps(there, cosines + t * half + i);
                const __m512 sine = _mm512_maskz_loadu_ps(there, sines + t * half + i);
                store(to + i, _mm512_fmsub_ps(first, cosine, _mm512_mul_ps(second, sine)), there);
                store(to + half + i, _mm512_fmadd_ps(second, cosine, _mm512_mul_ps(first, sine)), there);
            }
        }
    return 0;
}

// out = gate * sigmoid(gate), rounded, times up; `size` numbers each.
EXPORT int qianyan_gated_silu(const uint16_t *gate, const uint16_t *up, uint16_t *out, int64_t size, int threads) {
#pragma omp parallel for num_threads(threads) if (size > FEW)
    for (int64_t i = 0; i < size; i += LANES) {
        const __mmask16 there = lanes(size - i);
        const __m512 value = load(gate + i, there);
        const __m512 passed = rounded(_mm512_mul_ps(value, sigmoid(value)));
        store(out + i, _mm512_mul_ps(passed, load(up + i, there)), there);
    }
    return 0;
}

// out = hidden * sigmoid(1.702 hidden), rounded where PyTorch rounds; `size` numbers.
EXPORT int qianyan_quick_gelu(const uint16_t *hidden, uint16_t *out, int64_t size, int threads) {
#pragma omp parallel for num_threads(threads) if (size > FEW)
    for (int64_t i = 0; i < size; i += LANES) {
        const __mmask16 there = lanes(size - i);
        const __m512 value = load(hidden + i, there);
        const __m512 passed = rounded(sigmoid(rounded(_mm512_mul_ps(value, _mm512_set1_ps(1.702f)))));
        store(out + i, _mm512_mul_ps(value, passed), there);
    }
    return 0;
}
