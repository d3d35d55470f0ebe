/* One sweep over all tensors of a plan, on the CPU, at the speed of its memory.

   What is read and which sums are made stands in layout.py; the constants below are those of its enumerations.
   host_kernel.py calls this file through ctypes: it needs neither Python's headers nor torch's.

   Products are formed and added in float64. A segment is added up by one thread in a fixed order, so that the sums do
   not depend on the number of threads. */

#include <math.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define X86 1
#else
#define X86 0
#endif

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#define PREFETCH(address) __builtin_prefetch(address)
#define EXPORT __attribute__((visibility("default")))
#else
#define INLINE static inline
#define PREFETCH(address) (void)(address)
#define EXPORT
#endif

#define ABI 1       /* changes with any argument's meaning: host_kernel.py refuses a library of another one */
#define BLOCK 512   /* entries that are converted at a time: five fields of them fit into the first cache */
#define COPIED 2048 /* entries that are summed at a time where they are copied too */
#define STRIPE 256  /* entries that are added up side by side where runs are short */
#define AHEAD 2048  /* bytes that are fetched ahead of their use */
#define RUNS_AHEAD 2 /* short runs that are fetched ahead of their use */
#define SHORT 64    /* a run of fewer entries is short */

enum { BEFORE, AFTER, WHOLE, PAIR, ASKED };
enum { WEIGHT, OTHER, GRADIENT, MOMENTUM, SECOND_MOMENT, FIELDS };
enum { FLOAT32, BFLOAT16, FLOAT16, FLOAT64 };
static const int64_t SIZE[] = {4, 2, 2, 8};

/* The sums in the order of their numbers, and what an entry adds to each. */
#define EACH_SUM(DO)                                                                                                   \
    DO(XX, xx, e.x * e.x)                                                                                              \
    DO(GX, gx, e.g * e.x)                                                                                              \
    DO(GG, gg, e.g * e.g)                                                                                              \
    DO(XD, xd, e.x * e.d)                                                                                              \
    DO(DD, dd, e.d * e.d)                                                                                              \
    DO(V, v, e.v)                                                                                                      \
    DO(ROOT_V, root_v, e.root)                                                                                         \
    DO(AA, aa, e.a * e.a)                                                                                              \
    DO(AX, ax, e.a * e.x)                                                                                              \
    DO(AD, ad, e.a * e.d)                                                                                              \
    DO(P_SIZE, p_size, SIZE_OF(e.p))                                                                                      \
    DO(P_UNMOVED, p_unmoved, (wide_vector)((lanes)SIZE_OF(e.p) & (e.d == 0.0)))                                                             \
    DO(PP, pp, e.p * e.p)                                                                                              \
    DO(ERROR, error, (e.d - e.p) * (e.d - e.p))

#define NUMBER(total, local, product) total,
enum { EACH_SUM(NUMBER) TOTALS };
#define BIT(total) (1u << (total))

/* What is done with a tensor, as far as the inner loops differ. */
enum { OF_BEFORE, OF_PAIR, OF_V, OF_A, OF_A_V, OF_WHOLE, OF_WHOLE_V, OF_WHOLE_V_X, OF_ASKED, OF_ASKED_V };
#define EACH_FORM(DO)                                                                                                  \
    DO(OF_BEFORE) DO(OF_PAIR) DO(OF_V) DO(OF_A) DO(OF_A_V) DO(OF_WHOLE) DO(OF_WHOLE_V) DO(OF_WHOLE_V_X) DO(OF_ASKED)   \
    DO(OF_ASKED_V)

INLINE int is_whole(int form) { return form == OF_WHOLE || form == OF_WHOLE_V || form == OF_WHOLE_V_X; }
INLINE int is_asked(int form) { return form == OF_ASKED || form == OF_ASKED_V; }
INLINE int reads_a(int form) { return form >= OF_A; }
INLINE int reads_v(int form) {
    return form == OF_V || form == OF_A_V || form == OF_WHOLE_V || form == OF_WHOLE_V_X || form == OF_ASKED_V;
}

/* The sums that a form makes, as bits. */
INLINE unsigned sums_of(int form) {
    const unsigned before = BIT(XX) | BIT(GX) | BIT(GG);
    const unsigned after = BIT(XD) | BIT(DD) | (reads_v(form) ? BIT(V) | BIT(ROOT_V) : 0) |
                           (reads_a(form) ? BIT(AA) | BIT(AX) | BIT(AD) : 0);
    if (is_asked(form))
        return BIT(P_SIZE) | BIT(P_UNMOVED) | BIT(PP) | BIT(ERROR);
    return form == OF_BEFORE ? before : is_whole(form) ? before | after : form == OF_PAIR ? BIT(XX) | after : after;
}

/* A row of the table of factors. */
struct factors {
    double of_momentum, of_gradient, of_weight, rate, root, offset, shrink;
};

/* ---- the inner loops ------------------------------------------------------------------------------------------- */

INLINE float of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE float of_bfloat16(uint16_t bits) { return of_bits((uint32_t)bits << 16); }

/* Without subnormal intermediates: a process may have switched them off. */
INLINE float of_float16(uint16_t bits) {
    const uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, size = (uint32_t)(bits & 0x7fffu) << 13;
    const uint32_t normal = size + (112u << 23), infinite = size | 0x7f800000u;
    const float small = of_bits(size + (113u << 23)) - of_bits(113u << 23);
    uint32_t small_bits;
    memcpy(&small_bits, &small, sizeof small);
    const uint32_t found = size < (1u << 23) ? small_bits : size >= (31u << 23) ? infinite : normal;
    return of_bits(found | sign);
}

#define CONVERT(to, type, convert)                                                                                     \
    for (ptrdiff_t i = 0; i < n; i++)                                                                                  \
        ((to *)out)[i] = (to)convert(((const type *)from)[i]);                                                         \
    break

INLINE void convert(int code, int wide, const void *restrict from, ptrdiff_t n, void *restrict out) {
    switch (code + 4 * wide) {
    case BFLOAT16: CONVERT(float, uint16_t, of_bfloat16);
    case FLOAT16: CONVERT(float, uint16_t, of_float16);
    case FLOAT32 + 4: CONVERT(double, float, );
    case BFLOAT16 + 4: CONVERT(double, uint16_t, of_bfloat16);
    case FLOAT16 + 4: CONVERT(double, uint16_t, of_float16);
    }
}

/* The inner loops for one kind of processor. */
struct loops {
    void (*run)(int form, int wide, const void *const *, const struct factors *, ptrdiff_t, double *);
    void (*beside)(int form, const void *const *, const struct factors *, ptrdiff_t, double (*)[STRIPE]);
    void (*convert)(int code, int wide, const void *, ptrdiff_t, void *);
};

#define LANES 2
#define LEVEL(name) name##_plain
#define TARGET
#define WIDEN(v) __builtin_convertvector(v, wide_vector)
#define ROOT(v) ((wide_vector){sqrt((v)[0]), sqrt((v)[1])})
#define ROOT_32(v) ((narrow_vector){sqrtf((v)[0]), sqrtf((v)[1])})
#define SOME_32(from, count) ((narrow_vector){*(from), 0.0f})
#define SOME_64(from, count) ((wide_vector){*(from), 0.0})
#include "host_kernel_loops.h"

#if X86
static const int32_t FIRST[] = {-1, -1, -1, -1, 0, 0, 0, 0};
static const int64_t FIRST_64[] = {-1, -1, -1, -1, 0, 0, 0, 0};

#define LANES 4
#define LEVEL(name) name##_v3
#define TARGET __attribute__((target("avx2,fma")))
#define WIDEN(v) ((wide_vector)_mm256_cvtps_pd((__m128)(v)))
#define ROOT(v) ((wide_vector)_mm256_sqrt_pd((__m256d)(v)))
#define ROOT_32(v) ((narrow_vector)_mm_sqrt_ps((__m128)(v)))
#define SOME_32(from, count)                                                                                           \
    ((narrow_vector)_mm_maskload_ps(from, _mm_loadu_si128((const __m128i *)(FIRST + 4 - (count)))))
#define SOME_64(from, count)                                                                                           \
    ((wide_vector)_mm256_maskload_pd(from, _mm256_loadu_si256((const __m256i *)(FIRST_64 + 4 - (count)))))
#include "host_kernel_loops.h"

#define LANES 8
#define LEVEL(name) name##_v4
#define TARGET __attribute__((target("avx2,fma,avx512f,avx512vl,avx512dq,avx512bw")))
#define WIDEN(v) ((wide_vector)_mm512_cvtps_pd((__m256)(v)))
#define ROOT(v) ((wide_vector)_mm512_sqrt_pd((__m512d)(v)))
#define ROOT_32(v) ((narrow_vector)_mm256_sqrt_ps((__m256)(v)))
#define SOME_32(from, count) ((narrow_vector)_mm256_maskz_loadu_ps((__mmask8)((1 << (count)) - 1), from))
#define SOME_64(from, count) ((wide_vector)_mm512_maskz_loadu_pd((__mmask8)((1 << (count)) - 1), from))
#include "host_kernel_loops.h"
#endif

static const struct loops LEVELS[] = {
    {run_plain, beside_plain, convert_plain},
#if X86
    {run_v3, beside_v3, convert_v3},
    {run_v4, beside_v4, convert_v4},
#endif
};

/* ---- what one call works on ------------------------------------------------------------------------------------ */

/* Consecutive segments of one tensor that differ by their block alone. */
struct task {
    int64_t slot, block, first, length, segment, segments;
};

typedef void (*pool_function)(void (*)(void *), void *, unsigned, unsigned);
typedef int (*threads_function)(void);

/* What stays the same from step to step; host_kernel.py has the same structure. */
struct plan {
    const struct task *tasks;
    const int64_t *starts;   /* [shares + 1] into tasks: what a thread takes at a time */
    int64_t shares;
    const int64_t *geometry; /* [slots, 2] */
    pool_function pool;      /* GOMP_parallel, or null */
    threads_function threads;
    int64_t level;           /* index into LEVELS */
};

struct call {
    const struct plan *plan;
    int sweep;
    const int64_t *addresses;
    const int32_t *dtypes;
    const struct factors *factors;
    double *out;
    int64_t stride;
    const int64_t *rows; /* [TOTALS], -1 where a sum is not wanted */
    unsigned wanted;
    atomic_llong next;
};

/* A tensor, and what is done with it. */
struct tensor {
    const struct loops *loops;
    int form, wide, direct; /* direct: nothing has to be converted */
    const char *field[FIELDS]; /* null where it is not read */
    int code[FIELDS];
    char *copy;
    struct factors factors;
    unsigned made, wanted, unknown; /* sums that the form makes, those to write, those that are NaN */
};

static const double ZEROS[BLOCK];

static void look_up(const struct call *call, int64_t slot, struct tensor *t) {
    const int64_t *address = call->addresses + slot * FIELDS;
    const int sweep = call->sweep;
    const unsigned of_a = BIT(AA) | BIT(AX) | BIT(AD), of_v = BIT(V) | BIT(ROOT_V), of_g = BIT(GX) | BIT(GG);
    const int v = address[SECOND_MOMENT] != 0 && (sweep != AFTER || call->wanted & of_v);
    const int a = (call->wanted & of_a) != 0;
    memset(t, 0, sizeof *t);
    switch (sweep) {
    case BEFORE: t->form = OF_BEFORE; break;
    case AFTER: t->form = a ? (v ? OF_A_V : OF_A) : v ? OF_V : OF_PAIR; break;
    case WHOLE: t->form = v ? OF_WHOLE_V : OF_WHOLE; break;
    case PAIR: t->form = OF_PAIR; break;
    default: t->form = v ? OF_ASKED_V : OF_ASKED; break;
    }
    if (reads_a(t->form)) {
        t->factors = call->factors[slot];
        if (t->form == OF_WHOLE_V && t->factors.of_weight != 0.0)
            t->form = OF_WHOLE_V_X;
    }
    t->made = sums_of(t->form);
    t->wanted = call->wanted & (sweep == AFTER ? (t->made & ~BIT(XX)) | of_v : sweep == WHOLE ? t->made | of_v : t->made);
    t->unknown = (v ? 0 : of_v) | (address[GRADIENT] ? 0 : of_g);

    t->loops = &LEVELS[call->plan->level];
    t->direct = 1;
    for (int k = 0; k < FIELDS; k++) {
        const int read = k == WEIGHT                           ? 1
                         : k == OTHER                          ? sweep != BEFORE && sweep != WHOLE
                         : k == SECOND_MOMENT                  ? v && reads_v(t->form)
                         : k == GRADIENT && sweep == BEFORE    ? 1
                                                               : reads_a(t->form);
        if (!read)
            continue;
        t->field[k] = (const char *)(intptr_t)address[k];
        t->code[k] = call->dtypes[slot * FIELDS + k];
        if (t->field[k] == NULL)
            t->direct = 0;
        else if (t->code[k] == FLOAT64)
            t->wide = 1;
    }
    for (int k = 0; k < FIELDS; k++)
        if (t->field[k] != NULL && t->code[k] != (t->wide ? FLOAT64 : FLOAT32))
            t->direct = 0;
    if (t->field[WEIGHT] == NULL || (t->field[OTHER] == NULL && sweep != BEFORE && sweep != WHOLE))
        t->unknown = ~0u;
    if (sweep == BEFORE && t->field[WEIGHT] != NULL)
        t->copy = (char *)(intptr_t)address[OTHER];
}

/* Add the sums over n entries from the given one on, neighbours in memory, and copy them where that is asked for. */
static void sum_run(const struct tensor *t, int64_t start, int64_t n, double *sum) {
    double buffer[FIELDS][BLOCK];
    const int64_t size = SIZE[t->code[WEIGHT]];
    const int64_t step = !t->direct ? BLOCK : t->copy ? COPIED : n;
    for (int64_t at = start, left = n; left > 0; at += step, left -= step) {
        const int64_t here = left < step ? left : step;
        const void *field[FIELDS];
        for (int k = 0; k < FIELDS; k++) {
            const char *from = t->field[k] ? t->field[k] + at * SIZE[t->code[k]] : NULL;
            if (from == NULL)
                field[k] = ZEROS;
            else if (t->code[k] == (t->wide ? FLOAT64 : FLOAT32))
                field[k] = from;
            else {
                t->loops->convert(t->code[k], t->wide, from, here, buffer[k]);
                field[k] = buffer[k];
            }
        }
        t->loops->run(t->form, t->wide, field, &t->factors, here, sum);
        if (t->copy)
            memcpy(t->copy + at * size, t->field[WEIGHT] + at * size, (size_t)(here * size));
    }
}

static void write_out(const struct call *call, const struct tensor *t, int total, int64_t segment, double sum) {
    call->out[call->rows[total] * call->stride + segment] = t->unknown & BIT(total) ? (double)NAN : sum;
}

/* Segment by segment, run by run. */
static void sum_segments(const struct call *call, const struct tensor *t, const struct task *task, int64_t inner, int64_t outer) {
    for (int64_t k = 0; k < task->segments; k++) {
        double sum[TOTALS] = {0};
        int64_t at = task->first, left = task->length;
        while (left > 0) {
            const int64_t within = at % inner, here = left < inner - within ? left : inner - within;
            sum_run(t, (task->block + k) * inner + at / inner * outer + within, here, sum);
            at += here, left -= here;
        }
        for (int total = 0; total < TOTALS; total++)
            if (t->wanted & BIT(total))
                write_out(call, t, total, task->segment + k, sum[total]);
    }
}

/* Several segments with short runs side by side: their runs are neighbours in memory. */
static void sum_stripes(const struct call *call, const struct tensor *t, const struct task *task, int64_t inner, int64_t outer) {
    double buffer[FIELDS][STRIPE], beside[TOTALS][STRIPE];
    const int64_t from = (task->first + inner - 1) / inner, to = (task->first + task->length) / inner; /* whole runs */
    const int64_t head = from * inner - task->first, tail = task->first + task->length - to * inner;
    const int64_t size = SIZE[t->code[WEIGHT]], most = STRIPE / inner;
    if (from > to) { /* no whole run at all */
        sum_segments(call, t, task, inner, outer);
        return;
    }
    for (int64_t k = 0; k < task->segments; k += most) {
        const int64_t segments = task->segments - k < most ? task->segments - k : most, width = segments * inner;
        /* Where the segments are all there is, run after run is neighbours too. */
        const int64_t together = width == outer ? STRIPE / outer : 1;
        for (int total = 0; total < TOTALS; total++)
            if (t->made & BIT(total))
                memset(beside[total], 0, sizeof beside[total]);
        for (int64_t run = from; run < to; run += together) {
            const int64_t at = (task->block + k) * inner + run * outer;
            const int64_t n = (to - run < together ? to - run : together) * width;
            const void *field[FIELDS];
            for (int f = 0; f < FIELDS; f++) {
                const int64_t bytes = SIZE[t->code[f]];
                const char *source = t->field[f] ? t->field[f] + at * bytes : NULL;
                if (source && run + RUNS_AHEAD < to) /* far apart as they are, the processor does not foresee them */
                    for (int64_t byte = 0; byte < n * bytes; byte += 64)
                        PREFETCH(source + RUNS_AHEAD * outer * bytes + byte);
                if (source == NULL)
                    field[f] = ZEROS;
                else if (t->code[f] == FLOAT64)
                    field[f] = source;
                else {
                    t->loops->convert(t->code[f], 1, source, n, buffer[f]);
                    field[f] = buffer[f];
                }
            }
            t->loops->beside(t->form, field, &t->factors, n, beside);
            if (t->copy)
                memcpy(t->copy + at * size, t->field[WEIGHT] + at * size, (size_t)(n * size));
        }
        for (int64_t s = 0; s < segments && (head > 0 || tail > 0); s++) {
            double ends[TOTALS] = {0};
            const int64_t start = (task->block + k + s) * inner;
            if (head > 0)
                sum_run(t, start + (from - 1) * outer + inner - head, head, ends);
            if (tail > 0)
                sum_run(t, start + to * outer, tail, ends);
            for (int total = 0; total < TOTALS; total++)
                if (t->made & BIT(total))
                    beside[total][s * inner] += ends[total];
        }
        for (int total = 0; total < TOTALS; total++)
            for (int64_t s = 0; s < segments && t->wanted & BIT(total); s++) {
                double sum = 0.0;
                for (int64_t run = 0; run < together; run++)
                    for (int64_t i = 0; i < inner; i++)
                        sum += beside[total][run * width + s * inner + i];
                write_out(call, t, total, task->segment + k + s, sum);
            }
    }
}

static void work(void *argument) {
    struct call *call = argument;
    const struct plan *plan = call->plan;
    for (;;) {
        const int64_t share = atomic_fetch_add_explicit(&call->next, 1, memory_order_relaxed);
        if (share >= plan->shares)
            break;
        for (int64_t k = plan->starts[share]; k < plan->starts[share + 1]; k++) {
            const struct task *task = &plan->tasks[k];
            const int64_t inner = plan->geometry[2 * task->slot], outer = plan->geometry[2 * task->slot + 1];
            struct tensor tensor;
            look_up(call, task->slot, &tensor);
            if (inner < SHORT)
                sum_stripes(call, &tensor, task, inner, outer);
            else
                sum_segments(call, &tensor, task, inner, outer);
        }
    }
}

/* ---- what host_kernel.py calls --------------------------------------------------------------------------------- */

EXPORT int lightning_sphere_abi(void) { return ABI; }

/* Index of the best of the LEVELS that this processor runs. */
EXPORT int lightning_sphere_level(void) {
#if X86
    __builtin_cpu_init();
    const int v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const int v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    return v3 + v4;
#else
    return 0;
#endif
}

EXPORT void lightning_sphere_sweep(const struct plan *plan, int sweep, const int64_t *addresses, const int32_t *dtypes,
                                   const double *factors, double *out, int64_t stride, const int64_t *rows) {
    struct call call = {plan, sweep, addresses, dtypes, (const struct factors *)factors, out, stride, rows, 0, 0};
    for (int total = 0; total < TOTALS; total++)
        if (rows[total] >= 0)
            call.wanted |= BIT(total);
    int threads = plan->pool && plan->shares > 1 ? plan->threads() : 1;
    if (threads > plan->shares)
        threads = (int)plan->shares;
    if (threads > 1)
        plan->pool(work, &call, (unsigned)threads, 0);
    else
        work(&call);
}
