/* The inner loops of host_kernel.c for one kind of processor; included once for each.

   Before: LANES, how many float64 numbers it works on at a time; LEVEL(name), a name for this kind; TARGET, what the
   functions are compiled for; WIDEN, a float32 vector in float64 (compilers do it worse);
   ROOT and ROOT_32, the roots of a vector; SOME_32 and SOME_64, the first few numbers at an
   address, and 0 in the other lanes: nothing is read beyond them. */

#define wide_vector LEVEL(wide_vector)
#define narrow_vector LEVEL(narrow_vector)
#define wide_memory LEVEL(wide_memory)
#define narrow_memory LEVEL(narrow_memory)
#define lanes LEVEL(lanes)
#define entry LEVEL(entry)
#define load LEVEL(load)
#define load_narrow LEVEL(load_narrow)
#define entry_at LEVEL(entry_at)
#define total_of LEVEL(total_of)
#define add_run LEVEL(add_run)
#define add_beside LEVEL(add_beside)

typedef double wide_vector __attribute__((vector_size(8 * LANES)));
typedef float narrow_vector __attribute__((vector_size(4 * LANES)));
typedef double wide_memory __attribute__((vector_size(8 * LANES), aligned(8), may_alias));
typedef float narrow_memory __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int64_t lanes __attribute__((vector_size(8 * LANES)));

struct entry {
    wide_vector x, d, g, v, root, a, p;
};

/* LANES float32 entries of a field from i on; some of them if that is not 0. */
TARGET INLINE narrow_vector load_narrow(const void *field, ptrdiff_t i, int some) {
    const float *const here = (const float *)field + i;
    return some ? SOME_32(here, some) : (narrow_vector) * (const narrow_memory *)here;
}

/* The same in float64, from either. */
TARGET INLINE wide_vector load(const void *field, ptrdiff_t i, int some, int wide) {
    const double *const here = (const double *)field + i;
    if (!wide)
        return WIDEN(load_narrow(field, i, some));
    return some ? SOME_64(here, some) : (wide_vector) * (const wide_memory *)here;
}

/* Wherever this is used, form and wide (float64 in place of float32) are constants: the loops have no branches. */
TARGET INLINE struct entry entry_at(int form, int wide, const void *const *field, const struct factors *f, ptrdiff_t i,
                                    int some) {
    const int whole = is_whole(form), asked = is_asked(form);
    const wide_vector zero = {0};
    struct entry e = {zero, zero, zero, zero, zero, zero, zero};
    if (reads_a(form) && !some) /* the processor by itself does not foresee so many streams */
        for (int k = 0; k < FIELDS; k++)
            if ((k != OTHER || !whole) && (k != SECOND_MOMENT || reads_v(form)))
                PREFETCH((const char *)field[k] + (wide ? 8 : 4) * i + AHEAD);
    const wide_vector w = load(field[WEIGHT], i, some, wide);
    if (form == OF_BEFORE) {
        e.x = w;
        e.g = load(field[GRADIENT], i, some, wide);
    }
    if (reads_v(form)) {
        e.v = load(field[SECOND_MOMENT], i, some, wide);
        /* Roots are positive: where they are only added up they may be rounded. */
        if (wide || whole || asked)
            e.root = ROOT(e.v);
        else
            e.root = WIDEN(ROOT_32(load_narrow(field[SECOND_MOMENT], i, some)));
    }
    if (reads_a(form)) {
        e.g = load(field[GRADIENT], i, some, wide);
        e.a = f->of_momentum * load(field[MOMENTUM], i, some, wide) + f->of_gradient * e.g;
    }
    wide_vector rate = zero + f->rate; /* over b */
    if (reads_v(form) && (whole || asked))
        rate /= f->root * e.root + f->offset;
    if (whole) { /* w = x + P, solved for P */
        if (form == OF_WHOLE_V)
            e.d = (rate * e.a + f->shrink * w) * (-1.0 / (1.0 - f->shrink));
        else {
            const wide_vector of_weight = rate * f->of_weight;
            e.d = (rate * e.a + (of_weight + f->shrink) * w) * (-1.0 / (1.0 - f->shrink - of_weight));
        }
        e.x = w - e.d;
    } else if (form != OF_BEFORE) {
        e.x = load(field[OTHER], i, some, wide);
        e.d = w - e.x;
    }
    if (reads_a(form) && form != OF_WHOLE_V)
        e.a += f->of_weight * e.x;
    if (asked)
        e.p = -rate * e.a - f->shrink * e.x;
    if (some) { /* whatever was made of the zeros in the other lanes */
        lanes known;
        for (int lane = 0; lane < LANES; lane++)
            known[lane] = lane < some ? -1 : 0;
#define MASK(member) e.member = (wide_vector)((lanes)e.member & known)
        MASK(x), MASK(d), MASK(g), MASK(v), MASK(root), MASK(a), MASK(p);
#undef MASK
    }
    return e;
}

TARGET INLINE double total_of(wide_vector lane) {
    double total = 0.0;
    for (int k = 0; k < LANES; k++)
        total += lane[k];
    return total;
}

#define SIZE_OF(p) ((wide_vector)((lanes)(p) & INT64_MAX))
#define DECLARE(total, local, product) wide_vector local = {0}, local##_2 = {0};
#define ADD(total, local, product)                                                                                     \
    if (made & BIT(total))                                                                                             \
        local += product;
#define ADD_2(total, local, product) ADD(total, local##_2, product)
#define KEEP(total, local, product)                                                                                    \
    if (made & BIT(total))                                                                                             \
        sum[total] += total_of(local + local##_2);
#define ADD_BESIDE(total, local, product)                                                                              \
    if (made & BIT(total))                                                                                             \
        *(wide_memory *)&sum[total][i] += product;

/* Add the sums over n neighbouring entries. */
TARGET INLINE void add_run(int form, int wide, const void *const *field, const struct factors *f, ptrdiff_t n,
                           double *sum) {
    const unsigned made = sums_of(form);
    ptrdiff_t i = 0;
    EACH_SUM(DECLARE)
    if (!reads_a(form) || is_asked(form)) /* few sums: two of each, as an addition need not wait for the last then */
        for (; i + 2 * LANES <= n; i += 2 * LANES) {
            {
                const struct entry e = entry_at(form, wide, field, f, i, 0);
                EACH_SUM(ADD)
            }
            const struct entry e = entry_at(form, wide, field, f, i + LANES, 0);
            EACH_SUM(ADD_2)
        }
    for (; i + LANES <= n; i += LANES) {
        const struct entry e = entry_at(form, wide, field, f, i, 0);
        EACH_SUM(ADD)
    }
    if (i < n) {
        const struct entry e = entry_at(form, wide, field, f, i, (int)(n - i));
        EACH_SUM(ADD)
    }
    EACH_SUM(KEEP)
}

/* Add each of n neighbouring float64 entries to sums of its own. */
TARGET INLINE void add_beside(int form, const void *const *field, const struct factors *f, ptrdiff_t n,
                              double (*sum)[STRIPE]) {
    const unsigned made = sums_of(form);
    ptrdiff_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const struct entry e = entry_at(form, 1, field, f, i, 0);
        EACH_SUM(ADD_BESIDE)
    }
    if (i < n) {
        const struct entry e = entry_at(form, 1, field, f, i, (int)(n - i));
        EACH_SUM(ADD_BESIDE)
    }
}

#define RUN(form)                                                                                                      \
    case 2 * form: add_run(form, 0, field, f, n, sum); break;                                                          \
    case 2 * form + 1: add_run(form, 1, field, f, n, sum); break;
#define BESIDE(form)                                                                                                   \
    case form: add_beside(form, field, f, n, sum); break;

TARGET static void LEVEL(run)(int form, int wide, const void *const *field, const struct factors *factors,
                              ptrdiff_t n, double *sum) {
    const struct factors own = *factors, *const f = &own; /* no write to the sums can change it */
    switch (2 * form + wide) { EACH_FORM(RUN) }
}

TARGET static void LEVEL(beside)(int form, const void *const *field, const struct factors *factors, ptrdiff_t n,
                                 double (*sum)[STRIPE]) {
    const struct factors own = *factors, *const f = &own;
    switch (form) { EACH_FORM(BESIDE) }
}

TARGET static void LEVEL(convert)(int code, int wide, const void *from, ptrdiff_t n, void *out) {
    convert(code, wide, from, n, out);
}

#undef wide_vector
#undef narrow_vector
#undef wide_memory
#undef narrow_memory
#undef lanes
#undef entry
#undef load
#undef load_narrow
#undef entry_at
#undef total_of
#undef add_run
#undef add_beside
#undef SIZE_OF
#undef DECLARE
#undef ADD
#undef ADD_2
#undef KEEP
#undef ADD_BESIDE
#undef RUN
#undef BESIDE
#undef LANES
#undef LEVEL
#undef TARGET
#undef WIDEN
#undef ROOT
#undef ROOT_32
#undef SOME_32
#undef SOME_64
