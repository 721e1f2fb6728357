// Products of a few tokens with large weights, for processors with AVX512-BF16 and -VNNI.
//
// With few tokens the time is that of reading the weights once from memory, so they are read as they
// are stored, ROWS of them side by side. Integer weights meet activations that are two int8 numbers
// each, high + low / LOW_STEPS, finer together than the bfloat16 that they come from.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

// Nothing else of this library is seen from outside.
#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int64_t ROWS = 4;          // rows of the weight that are read side by side
constexpr int64_t STRETCH = 32;      // groups of ROWS that a thread takes at a time
constexpr float LOW_STEPS = 254.0f;  // what is left after the first 8 bits is at most 127 of these
constexpr int64_t BYTES = 64;        // of a register
constexpr int64_t NIBBLES = 2 * BYTES;
constexpr int64_t LANES = 16;          // floats of a register
constexpr float LEAST_STEP = 1e-30f;   // of a token that is all zeros

inline float from_bf16(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

inline uint16_t to_bf16(float value) {
    return (uint16_t)_mm_extract_epi16((__m128i)_mm_cvtneps_pbh(_mm_set_ss(value)), 0);
}

inline int64_t blocks_of(int64_t rows) { return (rows + ROWS - 1) / ROWS; }

// The rows of a block; one too many repeats the last.
inline int64_t row_of(int64_t block, int64_t r, int64_t rows) { return std::min(block * ROWS + r, rows - 1); }

template <int T>
void floats(const uint16_t *hidden, const uint16_t *weight, uint16_t *out, const int64_t *at, int64_t rows,
            int64_t columns) {
    __m512 sums[T][ROWS];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) sums[t][r] = _mm512_setzero_ps();
    for (int64_t c = 0; c < columns; c += BYTES / 2) {
        __m512bh own[ROWS];
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) own[r] = (__m512bh)_mm512_loadu_si512(weight + at[r] * columns + c);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
            const __m512bh token = (__m512bh)_mm512_loadu_si512(hidden + t * columns + c);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) sums[t][r] = _mm512_dpbf16_ps(sums[t][r], own[r], token);
        }
    }
    for (int t = 0; t < T; ++t)
        for (int r = 0; r < ROWS; ++r) out[t * rows + at[r]] = to_bf16(_mm512_reduce_add_ps(sums[t][r]));
}

// Tokens as two int8 numbers. 4-bit weights hold even columns in low halves, so for them each run of
// NIBBLES columns is stored evens first. `sums` are those of the numbers in each run of columns that share a scale.
struct Split {
    int8_t *high, *low;  // (tokens, columns)
    float *step, *sums;  // (tokens,) and (tokens, groups)
    int64_t columns, group;
};

inline __m512 sixteen(const uint16_t *from) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

inline __m512 rounded(__m512 value) {
    return _mm512_roundscale_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

inline void store_eights(int8_t *to, __m512 value) {
    _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(value)));
}

inline float largest_of(const uint16_t *from, int64_t columns) {
    __m512 largest = _mm512_setzero_ps();
    for (int64_t c = 0; c < columns; c += LANES) largest = _mm512_max_ps(largest, _mm512_abs_ps(sixteen(from + c)));
    return _mm512_reduce_max_ps(largest);
}

// Even columns first, then the odd ones.
inline void part(int8_t *numbers) {
    int8_t odd[BYTES];
    for (int64_t i = 0; i < BYTES; ++i) odd[i] = numbers[2 * i + 1];
    for (int64_t i = 1; i < BYTES; ++i) numbers[i] = numbers[2 * i];
    std::memcpy(numbers + BYTES, odd, BYTES);
}

void split(const uint16_t *hidden, const Split &to, int64_t token, bool is_interleaved) {
    const uint16_t *from = hidden + token * to.columns;
    int8_t *high = to.high + token * to.columns, *low = to.low + token * to.columns;
    const float step = std::max(largest_of(from, to.columns) / 127.0f, LEAST_STEP);
    const __m512 by = _mm512_set1_ps(1.0f / step), steps = _mm512_set1_ps(LOW_STEPS);
    to.step[token] = step;
    for (int64_t start = 0; start < to.columns; start += to.group) {
        __m512 highs = _mm512_setzero_ps(), lows = highs;
        for (int64_t c = start; c < start + to.group; c += LANES) {
            const __m512 value = _mm512_mul_ps(sixteen(from + c), by), whole = rounded(value);
            const __m512 rest = rounded(_mm512_mul_ps(_mm512_sub_ps(value, whole), steps));
            store_eights(high + c, whole);
            store_eights(low + c, rest);
            highs = _mm512_add_ps(highs, whole);
            lows = _mm512_add_ps(lows, rest);
        }
        to.sums[token * (to.columns / to.group) + start / to.group] =
            _mm512_reduce_add_ps(highs) + _mm512_reduce_add_ps(lows) / LOW_STEPS;
    }
    for (int64_t c = 0; is_interleaved && c < to.columns; c += NIBBLES) {
        part(high + c);
        part(low + c);
    }
}

inline __m512i bytes(const void *at) { return _mm512_loadu_si512(at); }

// int8 weights with one scale a row. The instruction wants one side unsigned: 128 more than the weight.
template <int T>
void eights(const Split &split, const int8_t *codes, const float *scales, uint16_t *out, const int64_t *at,
            int64_t first, int64_t rows) {
    const int64_t columns = split.columns;
    const __m512i middle = _mm512_set1_epi8(-128);
    __m512i highs[T][ROWS], lows[T][ROWS];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) highs[t][r] = lows[t][r] = _mm512_setzero_si512();
    for (int64_t c = 0; c < columns; c += BYTES) {
        __m512i own[ROWS];
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) own[r] = _mm512_xor_si512(bytes(codes + at[r] * columns + c), middle);
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) {
            const __m512i high = bytes(split.high + (first + t) * columns + c);
            const __m512i low = bytes(split.low + (first + t) * columns + c);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) {
                highs[t][r] = _mm512_dpbusd_epi32(highs[t][r], own[r], high);
                lows[t][r] = _mm512_dpbusd_epi32(lows[t][r], own[r], low);
            }
        }
    }
    for (int t = 0; t < T; ++t)
        for (int r = 0; r < ROWS; ++r) {
            const __m512 lanes = _mm512_fmadd_ps(_mm512_cvtepi32_ps(lows[t][r]), _mm512_set1_ps(1.0f / LOW_STEPS),
                                                 _mm512_cvtepi32_ps(highs[t][r]));
            const float sum = _mm512_reduce_add_ps(lanes) - 128.0f * split.sums[first + t];
            out[(first + t) * rows + at[r]] = to_bf16(sum * scales[at[r]] * split.step[first + t]);
        }
}

enum ScaleType : int { BF16, FP16, FP32 };

// 4-bit weights: (code - zero) * scale, one zero and scale for `group` columns of a row.
struct Fours {
    const uint8_t *codes;  // (rows, columns / 2): even columns in the low halves
    const uint8_t *zeros;  // (rows, groups)
    const void *scales;    // (rows, groups), of a type
    int type;
    int64_t group, groups;

    float scale(int64_t row, int64_t at) const {
        const int64_t index = row * groups + at;
        if (type == FP32) return static_cast<const float *>(scales)[index];
        const uint16_t bits = static_cast<const uint16_t *>(scales)[index];
        return type == FP16 ? _mm512_cvtss_f32(_mm512_cvtph_ps(_mm256_set1_epi16((short)bits))) : from_bf16(bits);
    }
    float zero(int64_t row, int64_t at) const { return zeros[row * groups + at]; }
};

// The scales of the 16 lanes of a register of codes: 8 columns each.
inline __m512 spread(const Fours &weight, int64_t row, int64_t start) {
    const int64_t at = start / weight.group;
    if (weight.group >= NIBBLES) return _mm512_set1_ps(weight.scale(row, at));
    alignas(64) float lanes[LANES];
    for (int64_t lane = 0; lane < LANES; ++lane) lanes[lane] = weight.scale(row, at + lane * 8 / weight.group);
    return _mm512_load_ps(lanes);
}

template <int T>
void fours(const Split &split, const Fours &weight, uint16_t *out, const int64_t *at, int64_t first, int64_t rows) {
    const int64_t columns = split.columns, groups = weight.groups;
    const __m512i half = _mm512_set1_epi8(15), steps = _mm512_set1_epi32(static_cast<int>(LOW_STEPS));
    __m512 sums[T][ROWS];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) sums[t][r] = _mm512_setzero_ps();
    for (int64_t c = 0; c < columns; c += NIBBLES) {
        __m512i even[ROWS], odd[ROWS];
        __m512 scale[ROWS];
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; ++r) {
            const __m512i own = bytes(weight.codes + (at[r] * columns + c) / 2);
            even[r] = _mm512_and_si512(own, half);
            odd[r] = _mm512_and_si512(_mm512_srli_epi16(own, 4), half);
            scale[r] = spread(weight, at[r], c);
        }
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) {
            const int8_t *high = split.high + (first + t) * columns + c, *low = split.low + (first + t) * columns + c;
            const __m512i high_even = bytes(high), high_odd = bytes(high + BYTES);
            const __m512i low_even = bytes(low), low_odd = bytes(low + BYTES);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; ++r) {
                __m512i highs = _mm512_dpbusd_epi32(_mm512_setzero_si512(), even[r], high_even);
                highs = _mm512_dpbusd_epi32(highs, odd[r], high_odd);
                __m512i lows = _mm512_dpbusd_epi32(_mm512_setzero_si512(), even[r], low_even);
                lows = _mm512_dpbusd_epi32(lows, odd[r], low_odd);
                const __m512i both = _mm512_add_epi32(_mm512_mullo_epi32(highs, steps), lows);
                sums[t][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(both), scale[r], sums[t][r]);
            }
        }
    }
    for (int t = 0; t < T; ++t)
        for (int r = 0; r < ROWS; ++r) {
            float sum = _mm512_reduce_add_ps(sums[t][r]) / LOW_STEPS;
            const float *own = split.sums + (first + t) * groups;
            for (int64_t g = 0; g < groups; ++g) sum -= weight.zero(at[r], g) * weight.scale(at[r], g) * own[g];
            out[(first + t) * rows + at[r]] = to_bf16(sum * split.step[first + t]);
        }
}

// A split with room for its numbers; empty when there is no memory.
struct Room {
    void *memory;
    Split split{};
    Room(int64_t tokens, int64_t columns, int64_t group) {
        const int64_t numbers = tokens * columns, sums = tokens * (columns / group) + tokens;
        const int64_t size = 2 * numbers + sums * static_cast<int64_t>(sizeof(float));
        memory = std::aligned_alloc(BYTES, (size + BYTES - 1) / BYTES * BYTES);
        if (!memory) return;
        auto *high = static_cast<int8_t *>(memory);
        auto *step = reinterpret_cast<float *>(high + 2 * numbers);
        split = {high, high + numbers, step, step + tokens, columns, group};
    }
    ~Room() { std::free(memory); }
};

// Call `tile` for all rows of the weight and all tokens, some tokens at a time.
template <typename Tile>
void for_tiles(int64_t tokens, int64_t rows, int64_t most, const Tile &tile) {
#pragma omp for schedule(dynamic, STRETCH)
    for (int64_t block = 0; block < blocks_of(rows); ++block) {
        int64_t at[ROWS];
        for (int64_t r = 0; r < ROWS; ++r) at[r] = row_of(block, r, rows);
        for (int64_t first = 0; first < tokens; first += most) tile(at, first, std::min(most, tokens - first));
    }
}

void widen_to_bf16(const Fours &weight, int64_t row, uint16_t *out, int64_t columns) {
    const uint8_t *codes = weight.codes + row * columns / 2;
    alignas(64) uint16_t meanings[32] = {};
    for (int64_t c = 0; c < columns; c += 32) {
        if (c % weight.group == 0) {
            const float scale = weight.scale(row, c / weight.group), zero = weight.zero(row, c / weight.group);
            for (int code = 0; code < 16; ++code) meanings[code] = to_bf16((static_cast<float>(code) - zero) * scale);
        }
        // each byte becomes two numbers of 16 bits: its low half, then its high half
        const __m512i wide = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(codes + c / 2)));
        const __m512i both = _mm512_or_si512(_mm512_and_si512(wide, _mm512_set1_epi32(15)),
                                             _mm512_slli_epi32(_mm512_srli_epi32(wide, 4), 16));
        _mm512_storeu_si512(out + c, _mm512_permutexvar_epi16(both, _mm512_load_si512(meanings)));
    }
}

void widen_to_int8(const Fours &weight, int64_t row, float row_scale, int8_t *out, int64_t columns) {
    const uint8_t *codes = weight.codes + row * columns / 2;
    alignas(64) int8_t meanings[16] = {};
    for (int64_t c = 0; c < columns; c += 32) {
        if (c % weight.group == 0) {
            const float scale = weight.scale(row, c / weight.group) / row_scale;
            const float zero = weight.zero(row, c / weight.group);
            for (int code = 0; code < 16; ++code)
                meanings[code] = static_cast<int8_t>(
                    std::nearbyint(std::clamp((static_cast<float>(code) - zero) * scale, -127.0f, 127.0f)));
        }
        const __m128i own = _mm_loadu_si128((const __m128i *)(codes + c / 2)), half = _mm_set1_epi8(15);
        const __m128i lookup = _mm_load_si128((const __m128i *)meanings);
        const __m128i even = _mm_shuffle_epi8(lookup, _mm_and_si128(own, half));
        const __m128i odd = _mm_shuffle_epi8(lookup, _mm_and_si128(_mm_srli_epi16(own, 4), half));
        _mm_storeu_si128((__m128i *)(out + c), _mm_unpacklo_epi8(even, odd));
        _mm_storeu_si128((__m128i *)(out + c + 16), _mm_unpackhi_epi8(even, odd));
    }
}

}  // namespace

// Round tokens (tokens, columns) to int8 numbers times a step each. `excess` is how far a token's largest number
// stands out of its root mean square: the coarser, the larger. Columns in 16s.
EXPORT int qianyan_round(const uint16_t *hidden, int8_t *out, float *step, float *excess, int64_t tokens,
                         int64_t columns, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t t = 0; t < tokens; ++t) {
        const uint16_t *from = hidden + t * columns;
        const float largest = largest_of(from, columns);
        step[t] = std::max(largest / 127.0f, LEAST_STEP);
        const __m512 by = _mm512_set1_ps(1.0f / step[t]);
        __m512 squares = _mm512_setzero_ps();
        for (int64_t c = 0; c < columns; c += LANES) {
            const __m512 value = _mm512_mul_ps(sixteen(from + c), by);
            squares = _mm512_fmadd_ps(value, value, squares);
            store_eights(out + t * columns + c, rounded(value));
        }
        const float mean = _mm512_reduce_add_ps(squares) / static_cast<float>(columns);
        excess[t] = mean > 0 ? 127.0f / std::sqrt(mean) : 0;
    }
    return 0;
}

// out (tokens, rows) bfloat16 = sums int32 * step of the token * scale of the row + bias; bias may be null.
EXPORT int qianyan_scale(const int32_t *sums, const float *step, const float *scales, const uint16_t *bias,
                         uint16_t *out, int64_t tokens, int64_t rows, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t t = 0; t < tokens; ++t) {
        const __m512 by = _mm512_set1_ps(step[t]);
        for (int64_t r = 0; r < rows; r += LANES) {
            const __mmask16 there = rows - r >= LANES ? 0xffff : (__mmask16)((1u << (rows - r)) - 1);
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(there, sums + t * rows + r));
            __m512 value = _mm512_mul_ps(_mm512_mul_ps(sum, by), _mm512_maskz_loadu_ps(there, scales + r));
            if (bias) {
                const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, bias + r));
                value = _mm512_add_ps(value, _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)));
            }
            _mm256_mask_storeu_epi16(out + t * rows + r, there, (__m256i)_mm512_cvtneps_pbh(value));
        }
    }
    return 0;
}

// Write 4-bit codes as bfloat16 weights (rows, columns), or as int8 ones that are times `row_scales` where these are
// given; columns and groups in 32s.
EXPORT int qianyan_widen(const uint8_t *codes, const uint8_t *zeros, const void *scales, int type,
                         const float *row_scales, void *out, int64_t rows, int64_t columns, int64_t group,
                         int threads) {
    const Fours weight{codes, zeros, scales, type, group, columns / group};
#pragma omp parallel for num_threads(threads)
    for (int64_t r = 0; r < rows; ++r) {
        if (row_scales)
            widen_to_int8(weight, r, row_scales[r], static_cast<int8_t *>(out) + r * columns, columns);
        else
            widen_to_bf16(weight, r, static_cast<uint16_t *>(out) + r * columns, columns);
    }
    return 0;
}

// out (tokens, rows) = hidden (tokens, columns) @ weight (rows, columns).T, bfloat16; columns in 32s.
EXPORT int qianyan_bf16_product(const uint16_t *hidden, const uint16_t *weight, uint16_t *out, int64_t tokens,
                                int64_t rows, int64_t columns, int threads) {
#pragma omp parallel num_threads(threads)
    for_tiles(tokens, rows, 4, [&](const int64_t *at, int64_t first, int64_t count) {
        const uint16_t *own = hidden + first * columns;
        uint16_t *to = out + first * rows;
        switch (count) {
            case 1: return floats<1>(own, weight, to, at, rows, columns);
            case 2: return floats<2>(own, weight, to, at, rows, columns);
            case 3: return floats<3>(own, weight, to, at, rows, columns);
            default: return floats<4>(own, weight, to, at, rows, columns);
        }
    });
    return 0;
}

// The same with int8 codes times a scale each row; columns in 64s. 1 when there is no memory.
EXPORT int qianyan_int8_product(const uint16_t *hidden, const int8_t *codes, const float *scales, uint16_t *out,
                                int64_t tokens, int64_t rows, int64_t columns, int threads) {
    const Room room(tokens, columns, columns);
    if (!room.memory) return 1;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (int64_t t = 0; t < tokens; ++t) split(hidden, room.split, t, false);
        for_tiles(tokens, rows, 3, [&](const int64_t *at, int64_t first, int64_t count) {
            switch (count) {
                case 1: return eights<1>(room.split, codes, scales, out, at, first, rows);
                case 2: return eights<2>(room.split, codes, scales, out, at, first, rows);
                default: return eights<3>(room.split, codes, scales, out, at, first, rows);
            }
        });
    }
    return 0;
}

// The same with 4-bit codes; columns in 128s, groups of 32, 64 or 128s. 1 when there is no memory.
EXPORT int qianyan_int4_product(const uint16_t *hidden, const uint8_t *codes, const uint8_t *zeros,
                                const void *scales, int type, uint16_t *out, int64_t tokens, int64_t rows,
                                int64_t columns, int64_t group, int threads) {
    const Room room(tokens, columns, group);
    if (!room.memory) return 1;
    const Fours weight{codes, zeros, scales, type, group, columns / group};
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (int64_t t = 0; t < tokens; ++t) split(hidden, room.split, t, true);
        for_tiles(tokens, rows, 2, [&](const int64_t *at, int64_t first, int64_t count) {
            if (count == 1) return fours<1>(room.split, weight, out, at, first, rows);
            return fours<2>(room.split, weight, out, at, first, rows);
        });
    }
    return 0;
}
