/* Dense products through our loader and the emulated library. Known answers: small integers, whose products and sums every 16-bit type and order of summation holds
 * exactly; TF32's rounding from its definition (10 bits of mantissa). */
extern "C" {
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
}

#include "kernels/cuda/cublaslt.h"
#include "kernels/half.h"
#include "tests/gpu/emu/emu_control.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#define OK(x) assert_int_equal(x, cudaSuccess)

namespace {

size_t bytes_of(enum cuda_type t)
{
    return t == CUDA_F32 ? 4 : 2;
}

void put(std::vector<char> &to, enum cuda_type t, size_t i, float v)
{
    if (t == CUDA_F32) {
        memcpy(&to[4 * i], &v, 4);
    } else {
        uint16_t h = t == CUDA_F16 ? half_to_f16(v) : half_to_bf16(v);
        memcpy(&to[2 * i], &h, 2);
    }
}

float get(const std::vector<char> &from, enum cuda_type t, size_t i)
{
    float f;
    uint16_t h;
    if (t == CUDA_F32) {
        memcpy(&f, &from[4 * i], 4);
        return f;
    }
    memcpy(&h, &from[2 * i], 2);
    return t == CUDA_F16 ? half_from_f16(h) : half_from_bf16(h);
}

struct buffer {
    std::vector<char> host;
    void *device = nullptr;
    explicit buffer(size_t bytes) : host(bytes, 0x7f) { OK(cudaMalloc(&device, bytes)); }
    ~buffer() { cudaFree(device); }
    void up(cudaStream_t s) { OK(cudaMemcpyAsync(device, host.data(), host.size(), cudaMemcpyHostToDevice, s)); }
    void down(cudaStream_t s) { OK(cudaMemcpyAsync(host.data(), device, host.size(), cudaMemcpyDeviceToHost, s)); }
};

int small(size_t i, size_t j) /* -3 .. 3 */
{
    return (int)((i * 7 + j * 5 + i * j) % 7) - 3;
}

struct shape {
    uint32_t n, rows, k;
    size_t w_stride, x_stride, y_stride;
    enum cuda_type type, y_type;
    bool bias, accumulate;
    size_t workspace;
};

void product_is_exact(struct cublaslt *lt, cudaStream_t s, const struct shape &c)
{
    size_t in = bytes_of(c.type), out = bytes_of(c.y_type);
    buffer w(c.rows * c.w_stride * in), x(c.n * c.x_stride * in), y(c.n * c.y_stride * out), bias(c.rows * out), workspace(c.workspace + 1);
    for (size_t i = 0; i < c.rows; i++)
        for (size_t j = 0; j < c.k; j++)
            put(w.host, c.type, i * c.w_stride + j, (float)small(i, j));
    for (size_t i = 0; i < c.n; i++)
        for (size_t j = 0; j < c.k; j++)
            put(x.host, c.type, i * c.x_stride + j, (float)small(j, i + 3));
    for (size_t i = 0; i < c.rows; i++)
        put(bias.host, c.y_type, i, (float)(i % 5));
    for (size_t i = 0; i < c.n * c.y_stride; i++)
        put(y.host, c.y_type, i, c.accumulate || i % c.y_stride >= c.rows ? (float)(i % 3) : NAN);
    for (buffer *b : {&w, &x, &y, &bias})
        b->up(s);
    struct cublaslt_problem p = {c.type, c.y_type, c.n, c.rows, c.k, w.device, x.device, c.w_stride, c.x_stride, y.device, c.y_stride,
                                 c.bias ? bias.device : nullptr, c.accumulate, workspace.device, c.workspace};
    OK(cublaslt_matmul(lt, &p, s));
    y.down(s);
    OK(cudaStreamSynchronize(s));
    for (size_t i = 0; i < c.n; i++)
        for (size_t r = 0; r < c.y_stride; r++) {
            int want = (int)((i * c.y_stride + r) % 3);
            if (r < c.rows) {
                want = (c.accumulate ? want : 0) + (c.bias ? (int)(r % 5) : 0);
                for (size_t j = 0; j < c.k; j++)
                    want += small(r, j) * small(j, i + 3);
            }
            if (get(y.host, c.y_type, i * c.y_stride + r) != (float)want)
                fail_msg("n %u rows %u k %u, token %zu row %zu: %f, not %d", c.n, c.rows, c.k, i, r, (double)get(y.host, c.y_type, i * c.y_stride + r), want);
        }
}

struct cublaslt *lt;
cudaStream_t stream;

int setup(void **)
{
    lt = cublaslt_open();
    return lt == nullptr || cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess;
}

int teardown(void **)
{
    cublaslt_close(&lt);
    return lt != nullptr || cudaStreamDestroy(stream) != cudaSuccess;
}

void products_of_small_integers_are_exact(void **)
{
    const struct shape shapes[] = {
        {1, 1, 8, 8, 8, 1, CUDA_BF16, CUDA_F32, false, false, 0},
        {5, 3, 8, 16, 8, 7, CUDA_F16, CUDA_F32, false, true, 1 << 20},
        {65, 33, 40, 40, 48, 33, CUDA_BF16, CUDA_F32, true, false, 1 << 20},
        {128, 64, 72, 72, 72, 100, CUDA_F16, CUDA_F32, true, true, 512},
        {66, 48, 24, 24, 24, 48, CUDA_BF16, CUDA_BF16, true, false, 0},
        {9, 16, 16, 16, 16, 16, CUDA_F16, CUDA_F16, false, true, 256},
        {70, 20, 12, 12, 12, 20, CUDA_F32, CUDA_F32, true, false, 4096},
        {7, 6, 5, 8, 8, 6, CUDA_F32, CUDA_F32, false, true, 0},
    };
    for (const struct shape &c : shapes) {
        product_is_exact(lt, stream, c);
        product_is_exact(lt, stream, c); /* by the remembered algorithm */
    }
}

/* What was chosen for one number of tokens serves all up to that power of two, or is chosen anew where the library refuses it (every n of 8 i + 1 here). */
void any_number_of_tokens_follows_another(void **)
{
    for (uint32_t n = 60; n < 76; n++)
        product_is_exact(lt, stream, {n, 24, 16, 16, 16, 24, CUDA_BF16, CUDA_F32, false, false, 1024});
}

/* More shapes than plans are remembered. */
void the_memory_of_plans_is_bounded(void **)
{
    for (uint32_t rows = 1; rows <= 300; rows++)
        product_is_exact(lt, stream, {2, rows, 8, 8, 8, 304, CUDA_F16, CUDA_F32, false, false, 0});
    product_is_exact(lt, stream, {2, 1, 8, 8, 8, 304, CUDA_F16, CUDA_F32, false, false, 0});
}

/* 1 + 2^-11 lies between TF32's 1 and 1 + 2^-10; 1 + 2^-10 is one of its numbers. */
void fp32_matrices_are_multiplied_as_tf32(void **)
{
    buffer w(32), x(32), y(8);
    std::vector<float> ws = {1 + 0x1p-11f, 0, 0, 0, 1 + 0x1p-10f, 0, 0, 0};
    memcpy(w.host.data(), ws.data(), 32);
    for (size_t i = 0; i < 4; i++)
        put(x.host, CUDA_F32, i, 1);
    w.up(stream);
    x.up(stream);
    struct cublaslt_problem p = {CUDA_F32, CUDA_F32, 1, 2, 4, w.device, x.device, 4, 4, y.device, 2, nullptr, false, nullptr, 0};
    OK(cublaslt_matmul(lt, &p, stream));
    y.down(stream);
    OK(cudaStreamSynchronize(stream));
    assert_true(get(y.host, CUDA_F32, 0) == 1.0f);
    assert_true(get(y.host, CUDA_F32, 1) == 1 + 0x1p-10f);
}

/* Captured once, replayed over new inputs. */
void a_product_can_be_captured(void **)
{
    buffer w(16), x(16), y(4);
    struct cublaslt_problem p = {CUDA_BF16, CUDA_F32, 1, 1, 8, w.device, x.device, 8, 8, y.device, 1, nullptr, false, nullptr, 0};
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    OK(cublaslt_matmul(lt, &p, stream));
    OK(cudaStreamEndCapture(stream, &graph));
    OK(cudaGraphInstantiate(&exec, graph, 0));
    OK(cudaGraphDestroy(graph));
    for (int v = 1; v <= 3; v++) {
        for (size_t j = 0; j < 8; j++) {
            put(w.host, CUDA_BF16, j, (float)v);
            put(x.host, CUDA_BF16, j, 2);
        }
        w.up(stream);
        x.up(stream);
        OK(cudaGraphLaunch(exec, stream));
        y.down(stream);
        OK(cudaStreamSynchronize(stream));
        assert_true(get(y.host, CUDA_F32, 0) == 16.0f * (float)v);
    }
    OK(cudaGraphExecDestroy(exec));
}

/* A matrix that reaches out of its memory, which a GPU would find out when it runs. */
void what_the_library_refuses_is_an_error(void **)
{
    buffer w(256), x(256), y(256);
    struct cublaslt_problem p = {CUDA_BF16, CUDA_F32, 9, 8, 16, w.device, x.device, 16, 16, y.device, 8, nullptr, false, nullptr, 0};
    assert_int_equal(cublaslt_matmul(lt, &p, stream), cudaErrorLaunchFailure);
    p.n = 0;
    OK(cublaslt_matmul(lt, &p, stream));
}

void the_version_is_that_of_the_header(void **)
{
    unsigned major, minor, patch;
    assert_int_equal(sscanf(cublaslt_version(lt), "%u.%u.%u", &major, &minor, &patch), 3);
    assert_int_equal(major, 13);
}

} // namespace

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_of_small_integers_are_exact), cmocka_unit_test(any_number_of_tokens_follows_another),
        cmocka_unit_test(the_memory_of_plans_is_bounded),       cmocka_unit_test(fp32_matrices_are_multiplied_as_tf32),
        cmocka_unit_test(a_product_can_be_captured),            cmocka_unit_test(what_the_library_refuses_is_an_error),
        cmocka_unit_test(the_version_is_that_of_the_header),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
