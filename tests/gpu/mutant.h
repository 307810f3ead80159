/* The switches that mutants.py writes into a copy of the kernels: each place where something can be weakened asks by its number whether it is to be weak in this run,
 * so that all mutants are built at once. Numbers start at 1; RACKLM_MUTANT names the active one, RACKLM_MUTANT_SEEN a file for the seconds of CPU that a run took and which of them it came by,
 * RACKLM_MUTANT_TEST the cmocka test that runs alone.
 *
 * Operators: a < b becomes a < mutant::lt{7} < b, which has the same precedence, so that nothing around it has to be understood. What is a constant expression is
 * never weakened. RACKLM_MUTANT_TURNED: a comparison is not weakened by one but turned round. Floating-point values always are: they are no bounds, and that two
 * are equal seldom matters. */
#ifndef TESTS_GPU_MUTANT_H
#define TESTS_GPU_MUTANT_H

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <type_traits>

extern "C" void cmocka_set_test_filter(const char *pattern) __attribute__((weak));

namespace mutant
{

constexpr unsigned MAX_ID = 16384;
inline unsigned char seen[MAX_ID];
inline unsigned active;
inline bool turned;

struct setup {
    setup()
    {
        const char *id = getenv("RACKLM_MUTANT"), *test = getenv("RACKLM_MUTANT_TEST");
        active = id ? unsigned(atoi(id)) : 0;
        turned = getenv("RACKLM_MUTANT_TURNED");
        if (test && cmocka_set_test_filter)
            cmocka_set_test_filter(test);
    }
    ~setup()
    {
        const char *path = getenv("RACKLM_MUTANT_SEEN");
        FILE *f = path ? fopen(path, "wb") : nullptr;
        if (f) {
            double cpu_s = double(clock()) / CLOCKS_PER_SEC;
            fwrite(&cpu_s, sizeof(cpu_s), 1, f);
            fwrite(seen, 1, sizeof(seen), f);
            fclose(f);
        }
    }
};
inline setup the_setup;

__attribute__((no_sanitize("thread"))) constexpr bool on(unsigned id) /* `seen` is no memory of a kernel */
{
    if (std::is_constant_evaluated())
        return false;
    seen[id] = 1;
    return id == active;
}

#define MUTANT_OPERATOR(name, op, weak)                                                                                \
    struct name {                                                                                                      \
        unsigned id;                                                                                                   \
    };                                                                                                                 \
    template <class L> struct name##_of {                                                                              \
        L l;                                                                                                           \
        unsigned id;                                                                                                   \
        template <class R> constexpr bool operator op(R r) const                                                       \
        {                                                                                                              \
            return !on(id) ? l op r : turned || std::is_floating_point_v<R> ? !(l op r) : (weak);                      \
        }                                                                                                              \
    };                                                                                                                 \
    template <class L> constexpr name##_of<L> operator op(L l, name m)                                                 \
    {                                                                                                                  \
        return {l, m.id};                                                                                              \
    }
MUTANT_OPERATOR(lt, <, l <= r)
MUTANT_OPERATOR(le, <=, l <= r || l == r + 1)
MUTANT_OPERATOR(gt, >, l >= r)
MUTANT_OPERATOR(ge, >=, l > r)
MUTANT_OPERATOR(more, >, l > r + 1) /* a reduction that ends a step early */
MUTANT_OPERATOR(ne, !=, ((void)r, true))
MUTANT_OPERATOR(eq, ==, ((void)r, false))
#undef MUTANT_OPERATOR

template <class A, class B> constexpr std::common_type_t<A, B> min(unsigned id, A a, B b)
{
    using T = std::common_type_t<A, B>;
    return on(id) ? (T(a) < T(b) ? T(b) : T(a)) : (T(a) < T(b) ? T(a) : T(b));
}
/* The lowest lane is not named. */
constexpr uint32_t mask(unsigned id, uint32_t m)
{
    return on(id) ? m & (m - 1) : m;
}
constexpr uint32_t full(unsigned id, uint32_t bytes, uint32_t all)
{
    return on(id) ? all : bytes;
}

} // namespace mutant

#endif
