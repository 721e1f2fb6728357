// Attention over packed bfloat16 tokens, for processors with AVX512-BF16.
//
// Softmax is taken on the way, block of keys by block (FlashAttention, arXiv 2205.14135). One task
// takes up to ROWS rows of one key-value head: every block of keys and values is laid out once for
// all of them, stays in the L2 cache, and is visited by TILE rows at a time. Sums are float32;
// only what is multiplied is bfloat16. Threads are those of torch: the GOMP_ symbols are left open
// when this is linked, and torch's own OpenMP library fills them.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

// Nothing else of this library is seen from outside.
#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int64_t LANES = 16;
constexpr int64_t KEYS = 256;    // keys of a block
constexpr int64_t GROUP = 64;    // keys of one register tile
constexpr int64_t TILE = 12;     // rows that visit a block together: a multiple of 6, 4 and 3
constexpr int64_t ROWS = 516;    // rows of a task, a multiple of TILE
constexpr int64_t MAX_DIM = 128;
constexpr float NONE = -1e30f;   // less than any score
constexpr float LOG2_E = 1.44269504f;
constexpr float LEAST = -126.0f;  // exponents below are nothing in float32

struct Sides {
    const uint16_t *query, *key, *value;
    uint16_t *out;
    int64_t query_token, query_head, key_token, key_head, value_token, value_head;  // strides
    const int64_t *key_rows;  // where each key lies; null: one after another
    int64_t heads, kv_heads, dim;
    float scale;
};

struct Task {
    int64_t query_start, key_start, key_count, offset;
    bool is_causal;
    int64_t kv_head, row, rows;
};

struct alignas(64) Scratch {
    alignas(64) uint16_t query[ROWS * MAX_DIM];
    alignas(64) uint16_t keys[KEYS * MAX_DIM];    // panels of 16 keys: [dim / 2][16][2]
    alignas(64) uint16_t values[KEYS * MAX_DIM];  // pairs of keys: [keys / 2][dim][2]
    alignas(64) float out[ROWS * MAX_DIM];
    alignas(64) float scores[TILE * KEYS];
    alignas(64) uint16_t shares[TILE * KEYS];
    float largest[ROWS], sum[ROWS];
    int64_t limit[ROWS];  // keys that a row sees
};

// 2^x to 4e-5, finer than the bfloat16 that it becomes.
inline __m512 exp2_of(__m512 x) {
    x = _mm512_max_ps(x, _mm512_set1_ps(LEAST));
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 part = _mm512_sub_ps(x, whole);
    __m512 y = _mm512_set1_ps(9.6181291e-3f);  // the series of exp(x log 2)
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(5.5504109e-2f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(2.4022651e-1f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(6.9314718e-1f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, whole);
}

inline __m512bh pair(const uint16_t *at) {
    int32_t both;
    std::memcpy(&both, at, sizeof both);
    return (__m512bh)_mm512_set1_epi32(both);
}

inline __m512bh line(const uint16_t *at) { return (__m512bh)_mm512_load_si512(at); }

inline __mmask16 first_lanes(int64_t count) {
    return count >= LANES ? 0xffff : count <= 0 ? 0 : (__mmask16)((1u << count) - 1);
}

inline int64_t round_up(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

inline int64_t place(const Sides &sides, int64_t key) {
    return sides.key_rows ? sides.key_rows[key] : key;
}

// Absent keys become zeros: they are masked later, but must be numbers.
void pack_keys(const Sides &sides, const Task &task, int64_t start, int64_t count, uint16_t *to) {
    const int64_t dim = sides.dim;
    for (int64_t key = 0; key < round_up(count, GROUP); ++key) {
        auto *column = reinterpret_cast<uint32_t *>(to + key / LANES * LANES * dim) + key % LANES;
        if (key >= count) {
            for (int64_t d = 0; d < dim / 2; ++d) column[d * LANES] = 0;
            continue;
        }
        const uint16_t *from = sides.key + place(sides, task.key_start + start + key) * sides.key_token +
                               task.kv_head * sides.key_head;
        for (int64_t d = 0; d < dim / 2; ++d) std::memcpy(column + d * LANES, from + 2 * d, 4);
    }
}

void pack_values(const Sides &sides, const Task &task, int64_t start, int64_t count, uint16_t *to) {
    const int64_t dim = sides.dim;
    const __m512i in_turns = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                              39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    for (int64_t key = 0; key < round_up(count, 2 * LANES); key += 2) {
        const uint16_t *from[2];
        for (int64_t side = 0; side < 2; ++side)
            from[side] = key + side >= count
                             ? nullptr
                             : sides.value + place(sides, task.key_start + start + key + side) * sides.value_token +
                                   task.kv_head * sides.value_head;
        for (int64_t d = 0; d < dim; d += LANES) {
            __m256i half[2];
            for (int64_t side = 0; side < 2; ++side)
                half[side] = from[side] ? _mm256_loadu_si256((const __m256i *)(from[side] + d))
                                        : _mm256_setzero_si256();
            _mm512_store_si512(to + key * dim + 2 * d,
                               _mm512_permutex2var_epi16(_mm512_castsi256_si512(half[0]), in_turns,
                                                         _mm512_castsi256_si512(half[1])));
        }
    }
}

// Scores of R rows against GROUP keys.
template <int R>
inline void score(const uint16_t *query, int64_t dim, const uint16_t *keys, float *scores) {
    constexpr int PANELS = GROUP / LANES;
    __m512 sums[R][PANELS];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int p = 0; p < PANELS; ++p) sums[r][p] = _mm512_setzero_ps();
    for (int64_t d = 0; d < dim; d += 2) {
        __m512bh own[PANELS];
#pragma GCC unroll 4
        for (int p = 0; p < PANELS; ++p) own[p] = line(keys + p * LANES * dim + d * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const __m512bh asked = pair(query + r * dim + d);
#pragma GCC unroll 4
            for (int p = 0; p < PANELS; ++p) sums[r][p] = _mm512_dpbf16_ps(sums[r][p], asked, own[p]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int p = 0; p < PANELS; ++p) _mm512_store_ps(scores + r * KEYS + p * LANES, sums[r][p]);
}

// One row's scores become shares; gives the factor of what was summed before.
template <bool MASKED>
inline float share(const float *scores, uint16_t *shares, int64_t keys, int64_t visible, float scale,
                   float &largest, float &sum) {
    __m512 top = _mm512_set1_ps(NONE);
    for (int64_t k = 0; k < keys; k += LANES) {
        const __m512 own = _mm512_load_ps(scores + k);
        top = MASKED ? _mm512_mask_max_ps(top, first_lanes(visible - k), top, own) : _mm512_max_ps(top, own);
    }
    const float next = std::max(largest, _mm512_reduce_max_ps(top) * scale);
    const float factor = std::exp2(std::max(largest - next, LEAST));
    const __m512 by = _mm512_set1_ps(scale), from = _mm512_set1_ps(next);
    __m512 total = _mm512_setzero_ps();
    for (int64_t k = 0; k < keys; k += 2 * LANES) {
        __m512 own[2];
#pragma GCC unroll 2
        for (int side = 0; side < 2; ++side) {
            own[side] = exp2_of(_mm512_fmsub_ps(_mm512_load_ps(scores + k + side * LANES), by, from));
            if (MASKED) own[side] = _mm512_maskz_mov_ps(first_lanes(visible - k - side * LANES), own[side]);
        }
        total = _mm512_add_ps(total, _mm512_add_ps(own[0], own[1]));
        _mm512_store_si512(shares + k, (__m512i)_mm512_cvtne2ps_pbh(own[1], own[0]));
    }
    sum = sum * factor + _mm512_reduce_add_ps(total);
    largest = next;
    return factor;
}

// out (R rows of V * LANES) = out * factor + shares @ values
template <int R, int V>
inline void blend(const uint16_t *shares, const uint16_t *values, int64_t keys, const float *factor, float *out) {
    constexpr int64_t dim = V * LANES;
    __m512 sums[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v)
            sums[r][v] = _mm512_mul_ps(_mm512_load_ps(out + r * dim + v * LANES), _mm512_set1_ps(factor[r]));
    for (int64_t k = 0; k < keys; k += 2) {
        __m512bh own[R];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) own[r] = pair(shares + r * KEYS + k);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
            const __m512bh value = line(values + k * dim + 2 * v * LANES);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], own[r], value);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) _mm512_store_ps(out + r * dim + v * LANES, sums[r][v]);
}

// TILE rows see the block of `count` keys that begins at `start`; R rows fit into the registers.
template <int V, int R>
void visit(Scratch &s, int64_t row, int64_t start, int64_t count, float scale) {
    constexpr int64_t dim = V * LANES;
    const int64_t *limits = s.limit + row;
    const int64_t seen = std::min(count, *std::max_element(limits, limits + TILE) - start);
    if (seen <= 0) return;
    const int64_t keys = round_up(seen, 2 * LANES);
    for (int64_t k = 0; k < seen; k += GROUP)
        for (int64_t r = 0; r < TILE; r += 6)
            score<6>(s.query + (row + r) * dim, dim, s.keys + k * dim, s.scores + r * KEYS + k);
    float factor[TILE];
    for (int64_t r = 0; r < TILE; ++r) {
        const int64_t visible = std::min(count, limits[r] - start);
        const auto own_share = visible < keys ? share<true> : share<false>;
        factor[r] = own_share(s.scores + r * KEYS, s.shares + r * KEYS, keys, visible, scale,
                              s.largest[row + r], s.sum[row + r]);
    }
    for (int64_t r = 0; r < TILE; r += R)
        blend<R, V>(s.shares + r * KEYS, s.values, keys, factor + r, s.out + (row + r) * dim);
}

using Visit = void (*)(Scratch &, int64_t, int64_t, int64_t, float);

Visit visit_of(int64_t dim) {
    static const Visit visits[] = {visit<1, 6>, visit<2, 6>, visit<3, 6>, visit<4, 6>,
                                   visit<5, 4>, visit<6, 4>, visit<7, 3>, visit<8, 3>};
    return visits[dim / LANES - 1];
}

// Rows of a task are tokens times the heads that share the key-value head.
struct Row {
    int64_t token, head;
    Row(const Sides &sides, const Task &task, int64_t row) {
        const int64_t group = sides.heads / sides.kv_heads;
        token = (task.row + row) / group;
        head = task.kv_head * group + (task.row + row) % group;
    }
};

void attend(const Sides &sides, const Task &task, Scratch &s) {
    const int64_t dim = sides.dim, rows = round_up(task.rows, TILE);
    int64_t seen = 0;
    for (int64_t r = 0; r < rows; ++r) {
        const Row row(sides, task, std::min(r, task.rows - 1));  // rows too many repeat the last
        std::memcpy(s.query + r * dim,
                    sides.query + (task.query_start + row.token) * sides.query_token + row.head * sides.query_head,
                    dim * sizeof(uint16_t));
        s.limit[r] = task.is_causal ? std::min(task.key_count, task.offset + row.token + 1) : task.key_count;
        s.largest[r] = NONE;
        s.sum[r] = 0;
        seen = std::max(seen, s.limit[r]);
    }
    std::memset(s.out, 0, rows * dim * sizeof(float));
    const Visit visit_block = visit_of(dim);
    for (int64_t start = 0; start < seen; start += KEYS) {
        const int64_t count = std::min(KEYS, seen - start);
        pack_keys(sides, task, start, count, s.keys);
        pack_values(sides, task, start, count, s.values);
        for (int64_t r = 0; r < rows; r += TILE) visit_block(s, r, start, count, sides.scale);
    }
    for (int64_t r = 0; r < task.rows; ++r) {
        const Row row(sides, task, r);
        uint16_t *to = sides.out + ((task.query_start + row.token) * sides.heads + row.head) * dim;
        const __m512 by = _mm512_set1_ps(1.0f / s.sum[r]);
        for (int64_t d = 0; d < dim; d += LANES) {
            const __m512 mean = _mm512_mul_ps(_mm512_load_ps(s.out + r * dim + d), by);
            _mm256_storeu_si256((__m256i *)(to + d), (__m256i)_mm512_cvtneps_pbh(mean));
        }
    }
}

}  // namespace

// Attend inside segments, rows of (query_start, query_count, key_start, key_count, offset): query i of a
// causal segment sees keys 0 to offset + i. Strides are those of query, key and value, (token, head) each, in
// numbers; `out` is (tokens, heads, dim). Gives 0, or 1 when there is no memory.
EXPORT int qianyan_attend(const uint16_t *query, const uint16_t *key, const uint16_t *value, uint16_t *out,
                              const int64_t *strides, const int64_t *key_rows, const int64_t *sizes,
                              const int64_t *segments, int64_t count, int is_causal, int threads) {
    const int64_t heads = sizes[0], kv_heads = sizes[1], dim = sizes[2], group = heads / kv_heads;
    const Sides sides{query,      key,        value,    out,   strides[0], strides[1], strides[2],
                      strides[3], strides[4], strides[5], key_rows, heads, kv_heads,   dim,
                      LOG2_E / std::sqrt(static_cast<float>(dim))};
    int64_t total = 0, next = 0;
    for (int64_t i = 0; i < count; ++i) total += (segments[5 * i + 1] * group + ROWS - 1) / ROWS * kv_heads;
    Task *tasks = new (std::nothrow) Task[total];
    if (!tasks) return 1;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t *at = segments + 5 * i, rows = at[1] * group;
        for (int64_t piece = (rows - 1) / ROWS; piece >= 0 && rows; --piece)  // the longest of a causal one first
            for (int64_t kv_head = 0; kv_head < kv_heads; ++kv_head)
                tasks[next++] = {at[0],  at[2],        at[3],  at[4], is_causal != 0,
                                 kv_head, piece * ROWS, std::min(ROWS, rows - piece * ROWS)};
    }
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(max : failed)
    {
        auto *scratch = static_cast<Scratch *>(std::aligned_alloc(64, sizeof(Scratch)));
        failed = scratch == nullptr;
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < total; ++i)
            if (scratch) attend(sides, tasks[i], *scratch);
        std::free(scratch);
    }
    delete[] tasks;
    return failed;
}

// Raised whenever a function of this library changes its arguments or its meaning.
EXPORT int qianyan_native_version() { return 3; }
