/* Integers of any size, as Python has them: what fits 64 bits is TV_INT, anything else a sign and 32-bit limbs, lowest
 * first, in the run's arena. Schoolbook algorithms (Knuth, TAOCP 2, 4.3.1): the size is bounded by TEMPLATE_BITS_MAX. */
#include "base/check.h"
#include "text/template_ast.h"

#include <math.h>
#include <string.h>

enum { LIMBS_MAX = TEMPLATE_BITS_MAX / 32 };

struct template_big {
    bool neg;
    uint32_t n;
    uint32_t d[];
};
/* Operands, whatever their kind. */
struct whole {
    bool neg;
    uint32_t n;
    const uint32_t *d;
    uint32_t small[2];
};

static void view(struct template_val v, struct whole *w)
{
    if (v.kind == TV_BIG) {
        *w = (struct whole){.neg = v.big->neg, .n = v.big->n, .d = v.big->d};
        return;
    }
    int64_t i = v.kind == TV_BOOL ? v.b : v.i;
    uint64_t m = i < 0 ? 0 - (uint64_t)i : (uint64_t)i;
    *w = (struct whole){.neg = i < 0, .n = m == 0 ? 0 : m >> 32 == 0 ? 1 : 2};
    w->small[0] = (uint32_t)m;
    w->small[1] = (uint32_t)(m >> 32);
    w->d = w->small;
}

static uint32_t *limbs(struct template_run *r, uint32_t n)
{
    if (n > LIMBS_MAX) {
        template_fail(r, ERR_TOO_BIG, "the chat template makes an integer of more than %d bits", TEMPLATE_BITS_MAX);
        return NULL;
    }
    struct template_big *b = template_alloc(r, 1, sizeof(*b) + (size_t)(n + 1) * sizeof(uint32_t));
    return b == NULL ? NULL : b->d;
}

/* The value of limbs() memory; small ones become TV_INT again. */
static struct template_val finish(bool neg, uint32_t *d, uint32_t n)
{
    while (n > 0 && d[n - 1] == 0)
        n--;
    uint64_t m = (n > 0 ? d[0] : 0) | (uint64_t)(n > 1 ? d[1] : 0) << 32;
    if (n <= 2 && m <= (uint64_t)INT64_MAX + neg)
        return template_int(neg ? (int64_t)(0 - m) : (int64_t)m);
    struct template_big *b = (struct template_big *)(void *)((char *)d - offsetof(struct template_big, d));
    b->neg = neg;
    b->n = n;
    return (struct template_val){.kind = TV_BIG, .big = b};
}

static int cmp_mag(const uint32_t *a, uint32_t na, const uint32_t *b, uint32_t nb)
{
    if (na != nb)
        return na < nb ? -1 : 1;
    for (uint32_t i = na; i-- > 0;)
        if (a[i] != b[i])
            return a[i] < b[i] ? -1 : 1;
    return 0;
}

int template_int_cmp(struct template_val a, struct template_val b)
{
    struct whole x, y;
    view(a, &x);
    view(b, &y);
    if (x.neg != y.neg)
        return x.neg ? -1 : 1;
    int c = cmp_mag(x.d, x.n, y.d, y.n);
    return x.neg ? -c : c;
}

/* |a| + |b|, or |a| - |b| where |a| >= |b|. */
static struct template_val add_mag(struct template_run *r, const struct whole *a, const struct whole *b, bool minus, bool neg)
{
    uint32_t n = MAX(a->n, b->n) + !minus, *d = limbs(r, n);
    if (d == NULL || !template_step(r, 1 + n / 16))
        return template_undefined(NULL, 0);
    int64_t carry = 0;
    for (uint32_t i = 0; i < n; i++) {
        int64_t y = i < b->n ? b->d[i] : 0;
        carry += (int64_t)(i < a->n ? a->d[i] : 0) + (minus ? -y : y);
        d[i] = (uint32_t)carry;
        carry >>= 32;
    }
    return finish(neg, d, n);
}

static struct template_val add(struct template_run *r, const struct whole *a, const struct whole *b, bool minus)
{
    bool bneg = b->neg != minus;
    if (a->neg == bneg)
        return add_mag(r, a, b, false, a->neg);
    return cmp_mag(a->d, a->n, b->d, b->n) >= 0 ? add_mag(r, a, b, true, a->neg) : add_mag(r, b, a, true, bneg);
}

static struct template_val mul(struct template_run *r, const struct whole *a, const struct whole *b)
{
    uint32_t n = a->n + b->n, *d = limbs(r, n);
    if (d == NULL || !template_step(r, 1 + (uint64_t)a->n * b->n / 16))
        return template_undefined(NULL, 0);
    for (uint32_t i = 0; i < a->n; i++) {
        uint64_t carry = 0;
        for (uint32_t k = 0; k < b->n; k++) {
            carry += (uint64_t)a->d[i] * b->d[k] + d[i + k];
            d[i + k] = (uint32_t)carry;
            carry >>= 32;
        }
        d[i + b->n] = (uint32_t)carry;
    }
    return finish(a->neg != b->neg, d, n);
}

/* d[0, n) /= by; gives the remainder. */
static uint32_t div_small(uint32_t *d, uint32_t n, uint32_t by)
{
    uint64_t rest = 0;
    for (uint32_t i = n; i-- > 0;) {
        rest = rest << 32 | d[i];
        d[i] = (uint32_t)(rest / by);
        rest %= by;
    }
    return (uint32_t)rest;
}

/* Knuth's algorithm D on magnitudes: u (un + 1 limbs, shifted) is left as the remainder. */
static void div_long(uint32_t *q, uint32_t *u, uint32_t un, const uint32_t *v, uint32_t vn)
{
    for (uint32_t j = un - vn + 1; j-- > 0;) {
        uint64_t top = (uint64_t)u[j + vn] << 32 | u[j + vn - 1], guess = top / v[vn - 1], rest = top % v[vn - 1];
        while (guess >> 32 != 0 || guess * v[vn - 2] > (rest << 32 | u[j + vn - 2])) {
            guess--;
            rest += v[vn - 1];
            if (rest >> 32 != 0)
                break;
        }
        int64_t borrow = 0;
        uint64_t carry = 0;
        for (uint32_t i = 0; i < vn; i++) {
            carry += guess * v[i];
            borrow += (int64_t)u[i + j] - (uint32_t)carry;
            u[i + j] = (uint32_t)borrow;
            borrow >>= 32;
            carry >>= 32;
        }
        borrow += (int64_t)u[j + vn] - (int64_t)carry;
        u[j + vn] = (uint32_t)borrow;
        if (borrow < 0) { /* one too many */
            guess--;
            carry = 0;
            for (uint32_t i = 0; i < vn; i++) {
                carry += (uint64_t)u[i + j] + v[i];
                u[i + j] = (uint32_t)carry;
                carry >>= 32;
            }
            u[j + vn] += (uint32_t)carry;
        }
        q[j] = (uint32_t)guess;
    }
}

/* Towards minus infinity, the remainder with the divisor's sign. b is not zero. */
static struct template_val divide(struct template_run *r, const struct whole *a, const struct whole *b, bool want_rest)
{
    uint32_t qn = a->n >= b->n ? a->n - b->n + 1 : 1, *q = limbs(r, qn), *u = limbs(r, a->n + 1), *v = limbs(r, b->n + 1);
    if (r->failed || !template_step(r, 1 + (uint64_t)qn * b->n / 8))
        return template_undefined(NULL, 0);
    if (a->n > 0)
        memcpy(u, a->d, a->n * sizeof(*u));
    if (a->n >= b->n && b->n == 1) {
        memcpy(q, a->d, a->n * sizeof(*q));
        uint32_t rest = div_small(q, qn, b->d[0]);
        memset(u, 0, a->n * sizeof(*u));
        u[0] = rest;
    } else if (a->n >= b->n) {
        int shift = __builtin_clz(b->d[b->n - 1]);
        for (uint32_t i = b->n; i-- > 0;)
            v[i] = b->d[i] << shift | (shift > 0 && i > 0 ? b->d[i - 1] >> (32 - shift) : 0);
        for (uint32_t i = a->n + 1; i-- > 0;)
            u[i] = (i < a->n ? a->d[i] << shift : 0) | (shift > 0 && i > 0 ? a->d[i - 1] >> (32 - shift) : 0);
        div_long(q, u, a->n, v, b->n);
        for (uint32_t i = 0; i < a->n + 1; i++)
            u[i] = u[i] >> shift | (shift > 0 && i < a->n ? u[i + 1] << (32 - shift) : 0);
    }
    bool rest = false;
    for (uint32_t i = 0; i < a->n + 1 && !rest; i++)
        rest = u[i] != 0;
    struct template_val quo = finish(a->neg != b->neg, q, qn), rem = finish(a->neg, u, a->n);
    struct whole w, one;
    if (rest && a->neg != b->neg && want_rest) {
        view(rem, &w);
        return add(r, &w, b, false);
    }
    if (rest && a->neg != b->neg) {
        view(quo, &w);
        view(template_int(1), &one);
        return add(r, &w, &one, true);
    }
    return want_rest ? rem : quo;
}

static struct template_val power(struct template_run *r, struct template_val base, uint64_t e)
{
    struct template_val v = template_int(1);
    while (e > 0 && !r->failed) {
        if (e & 1)
            v = template_int_op(r, '*', v, base);
        e >>= 1;
        if (e > 0)
            base = template_int_op(r, '*', base, base);
    }
    return v;
}

struct template_val template_int_op(struct template_run *r, int op, struct template_val a, struct template_val b)
{
    int64_t x, y, v;
    bool small = template_small(a, &x);
    small = template_small(b, &y) && small;
    if (small && ((op == '+' && !__builtin_add_overflow(x, y, &v)) || (op == '-' && !__builtin_sub_overflow(x, y, &v)) ||
                  (op == '*' && !__builtin_mul_overflow(x, y, &v))))
        return template_int(v);
    struct whole p, q;
    view(a, &p);
    view(b, &q);
    if (op == '+' || op == '-')
        return add(r, &p, &q, op == '-');
    if (op == '*')
        return mul(r, &p, &q);
    if (op == OP_POW) {
        if (q.neg) {
            double f = pow(template_int_double(a), template_int_double(b));
            if (isinf(template_int_double(a)) || isinf(template_int_double(b)))
                return template_fail(r, ERR_INVALID, "int too large to convert to float");
            return p.n == 0 ? template_fail(r, ERR_INVALID, "0.0 cannot be raised to a negative power") : template_float(f);
        }
        if (p.n == 1 && p.d[0] == 1) /* 1 and -1 */
            return template_int(p.neg && !template_int_even(b) ? -1 : 1);
        if (p.n == 0)
            return template_int(q.n == 0);
        return q.n > 1 ? template_fail(r, ERR_TOO_BIG, "the chat template makes an integer of more than %d bits", TEMPLATE_BITS_MAX)
                       : power(r, a.kind == TV_BOOL ? template_int(a.b) : a, q.n == 0 ? 0 : q.d[0]);
    }
    if (q.n == 0)
        return template_fail(r, ERR_INVALID, "integer division or modulo by zero");
    if (small && y != -1) {
        int64_t quo = x / y, rem = x % y;
        if (rem != 0 && (rem < 0) != (y < 0)) {
            quo--;
            rem += y;
        }
        return template_int(op == '%' ? rem : quo);
    }
    return divide(r, &p, &q, op == '%');
}

double template_int_double(struct template_val v)
{
    struct whole w;
    if (v.kind != TV_BIG)
        return (double)(v.kind == TV_BOOL ? v.b : v.i);
    view(v, &w);
    /* 64 bits from the top; what is cut off must not be lost for the rounding to even */
    uint32_t n = w.n, top = (uint32_t)__builtin_clz(w.d[n - 1]);
    uint64_t m = (uint64_t)w.d[n - 1] << 32 | w.d[n - 2];
    if (n > 2 && top > 0)
        m = m << top | w.d[n - 3] >> (32 - top);
    else if (top > 0)
        m <<= top;
    bool rest = n > 2 && top > 0 && (w.d[n - 3] << top) != 0;
    rest = rest || (n > 2 && top == 0 && w.d[n - 3] != 0);
    for (uint32_t i = 0; n > 3 && i < n - 3 && !rest; i++)
        rest = w.d[i] != 0;
    double f = ldexp((double)(m | rest), (int)(n * 32 - 64) - (int)top);
    return w.neg ? -f : f;
}

struct template_val template_int_from_double(struct template_run *r, double f)
{
    if (fabs(f) < 9.2e18)
        return template_int((int64_t)f);
    int exp;
    uint64_t m = (uint64_t)ldexp(frexp(fabs(f), &exp), 64);
    uint32_t shift = (uint32_t)exp - 64, n = shift / 32 + 3, *d = exp < 64 ? NULL : limbs(r, n);
    if (exp < 64) { /* between 2^63 and 2^64 */
        m >>= 64 - exp;
        shift = 0;
        n = 3;
        d = limbs(r, n);
    }
    if (d == NULL)
        return template_undefined(NULL, 0);
    uint32_t at = shift / 32, by = shift % 32;
    d[at] = (uint32_t)(m << by);
    d[at + 1] = (uint32_t)(m << by >> 32);
    d[at + 2] = by == 0 ? 0 : (uint32_t)(m >> (64 - by));
    return finish(f < 0, d, n);
}

static int digit_value(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'z' ? (c | 32) - 'a' + 10 : 99;
}

struct template_val template_int_parse(struct template_run *r, const char *s, size_t len, int base)
{
    bool neg = len > 0 && s[0] == '-';
    size_t i = len > 0 && (s[0] == '-' || s[0] == '+'), digits = 0;
    uint32_t n = 0, *d = limbs(r, (uint32_t)MIN(len * 6 / 32 + 2, (size_t)LIMBS_MAX));
    if (i == len || r->failed || len - i > TEMPLATE_DIGITS_MAX || !template_step(r, 1 + len * len / 256))
        return (struct template_val){0};
    for (; i < len; i++) {
        if (s[i] == '_' && digits > 0 && s[i - 1] != '_' && i + 1 < len)
            continue;
        int v = digit_value(s[i]);
        if (v >= base)
            return (struct template_val){0};
        uint64_t carry = (uint64_t)v;
        for (uint32_t k = 0; k < n; k++) {
            carry += (uint64_t)d[k] * (uint32_t)base;
            d[k] = (uint32_t)carry;
            carry >>= 32;
        }
        if (carry != 0)
            d[n++] = (uint32_t)carry;
        digits++;
    }
    return finish(neg, d, n);
}

bool template_int_even(struct template_val v)
{
    struct whole w;
    view(v, &w);
    return w.n == 0 || (w.d[0] & 1) == 0;
}

struct template_val template_int_text(struct template_run *r, struct template_val v, int base)
{
    struct whole w;
    view(v, &w);
    uint32_t chunk = base == 10 ? 1000000000u : base == 8 ? 1u << 30 : base == 16 ? 1u << 28 : 1u << 16, per = base == 10 ? 9 : base == 8 ? 10 : base == 16 ? 7 : 16;
    size_t cap = (size_t)w.n * (base == 10 || base == 8 ? 12 : base == 16 ? 9 : 34) + 4, at = cap;
    char *out = template_alloc(r, cap, 1);
    uint32_t *d = limbs(r, w.n);
    if (r->failed || !template_step(r, 1 + (uint64_t)w.n * w.n / 8))
        return template_cstr("");
    if (w.n > 0)
        memcpy(d, w.d, w.n * sizeof(*d));
    for (uint32_t n = w.n; n > 0;) {
        uint32_t rest = div_small(d, n, chunk);
        while (n > 0 && d[n - 1] == 0)
            n--;
        for (uint32_t k = 0; n > 0 ? k < per : rest > 0; k++, rest /= (uint32_t)base)
            out[--at] = "0123456789abcdef"[rest % (uint32_t)base];
    }
    if (at == cap)
        out[--at] = '0';
    if (base == 10 && cap - at > TEMPLATE_DIGITS_MAX)
        return template_fail(r, ERR_INVALID, "Exceeds the limit (%d digits) for integer string conversion", TEMPLATE_DIGITS_MAX);
    if (w.neg)
        out[--at] = '-';
    return template_str(out + at, cap - at);
}
