/*
 * Floating point: dense, sparse, x87, SIMD, and the C library's functions.
 */
#include <immintrin.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "rsbench.h"

static struct result bench_matmul(void)
{
    enum { N = 128 };
    static double a[N][N], b[N][N], c[N][N];
    for (unsigned i = 0; i < N; i++)
        for (unsigned j = 0; j < N; j++) {
            a[i][j] = (double)(rng() & 15);
            b[i][j] = (double)(rng() & 15);
        }
    start();
    for (uint64_t r = 0; r < 4; r++)
        for (unsigned i = 0; i < N; i++)
            for (unsigned j = 0; j < N; j++) {
                double s = 0;
                for (unsigned k = 0; k < N; k++)
                    s += a[i][k] * b[k][j];
                c[i][j] = s;
                asm volatile("" ::: "memory");
            }
    stop();
    double sum = 0;
    for (unsigned i = 0; i < N; i++)
        for (unsigned j = 0; j < N; j++)
            sum += c[i][j] * (double)(i + 2 * j);
    return (struct result){4ull * N * N * N, (uint64_t)sum};
}

static struct result bench_sin(void)
{
    double sum = 0;
    start();
    for (uint64_t i = 0; i < 1000000; i++)
        sum += sin((double)i * 0.001);
    stop();
    return (struct result){1000000, (uint64_t)(int64_t)llround(sum * 1e4)};
}

static struct result bench_x87(void)
{
    long double x = 0.5L;
    start();
    for (uint64_t i = 0; i < 2000000; i++)
        x = x * 1.25L + 1.0L / (x + 2.0L) - x * x * 0.25L;
    stop();
    return (struct result){2000000, (uint64_t)(x * 1e12L)};
}

__attribute__((target("avx2"))) static uint64_t sad_avx2(const uint8_t *a, const uint8_t *b,
                                                         size_t size)
{
    __m256i sum = _mm256_setzero_si256();
    for (size_t i = 0; i < size; i += 32) {
        __m256i x = _mm256_loadu_si256((const __m256i *)(a + i));
        __m256i y = _mm256_loadu_si256((const __m256i *)(b + i));
        __m256i z = _mm256_max_epu8(x, _mm256_add_epi8(y, _mm256_set1_epi8(3)));
        sum = _mm256_add_epi64(sum, _mm256_sad_epu8(z, y));
    }
    uint64_t v[4];
    _mm256_storeu_si256((__m256i *)v, sum);
    return v[0] + v[1] + v[2] + v[3];
}

static struct result bench_avx2(void)
{
    static uint8_t a[16384 + 64], b[16384 + 64];
    for (unsigned i = 0; i < sizeof(a); i++) {
        a[i] = (uint8_t)rng();
        b[i] = (uint8_t)rng();
    }
    if (!__builtin_cpu_supports("avx2")) {
        fprintf(stderr, "rsbench: this CPU has no AVX2\n");
        exit(2);
    }
    uint64_t check = 0;
    start();
    for (uint64_t r = 0; r < 20000; r++)
        check += sad_avx2(a + (r & 31), b + (r & 15), 16384);
    stop();
    return (struct result){20000ull * 16, check};
}

/* Sparse matrix times vector, compressed rows: indirect loads of doubles. */
static struct result bench_spmv(void)
{
    enum { ROWS = 20000, PER_ROW = 12, TIMES = 10 };
    static uint32_t column[ROWS * PER_ROW];
    static double value[ROWS * PER_ROW], x[ROWS], y[ROWS];
    for (unsigned i = 0; i < ROWS * PER_ROW; i++) {
        column[i] = (uint32_t)(rng() % ROWS);
        value[i] = (double)(rng() & 7);
    }
    for (unsigned i = 0; i < ROWS; i++)
        x[i] = (double)(rng() & 7);
    double sum = 0;
    start();
    for (unsigned t = 0; t < TIMES; t++) {
        for (unsigned i = 0; i < ROWS; i++) {
            double s = 0;
            for (unsigned k = i * PER_ROW; k < (i + 1) * PER_ROW; k++)
                s += value[k] * x[column[k]];
            y[i] = s;
        }
        sum += y[t * 17];
    }
    stop();
    return (struct result){(uint64_t)ROWS * PER_ROW * TIMES, (uint64_t)sum};
}

/* Five bodies that attract each other: divisions, square roots, structures of doubles. */
static struct result bench_nbody(void)
{
    enum { BODIES = 5, STEPS = 50000 };
    struct body {
        double p[3], v[3], mass;
    } b[BODIES];
    for (unsigned i = 0; i < BODIES; i++) {
        for (unsigned k = 0; k < 3; k++) {
            b[i].p[k] = (double)(rng() % 1000) / 100;
            b[i].v[k] = (double)(rng() % 1000) / 1000;
        }
        b[i].mass = 1.0 + (double)(rng() % 10);
    }
    start();
    for (unsigned s = 0; s < STEPS; s++) {
        for (unsigned i = 0; i < BODIES; i++)
            for (unsigned j = i + 1; j < BODIES; j++) {
                double d[3], d2 = 0.01;
                for (unsigned k = 0; k < 3; k++) {
                    d[k] = b[i].p[k] - b[j].p[k];
                    d2 += d[k] * d[k];
                }
                double mag = 0.0001 / (d2 * sqrt(d2));
                for (unsigned k = 0; k < 3; k++) {
                    b[i].v[k] -= d[k] * b[j].mass * mag;
                    b[j].v[k] += d[k] * b[i].mass * mag;
                }
            }
        for (unsigned i = 0; i < BODIES; i++)
            for (unsigned k = 0; k < 3; k++)
                b[i].p[k] += 0.0001 * b[i].v[k];
    }
    stop();
    double sum = 0;
    for (unsigned i = 0; i < BODIES; i++)
        sum += b[i].p[0] + b[i].p[1] * 2 + b[i].p[2] * 3;
    return (struct result){STEPS, (uint64_t)(int64_t)(sum * 1e9)};
}

/* A radix-2 FFT there and back. */
static void fft(double *re, double *im, unsigned n, const double *tw, double sign)
{
    for (unsigned i = 1, j = 0; i < n; i++) {
        unsigned bit = n >> 1;
        for (; j & bit; bit >>= 1)
            j ^= bit;
        j ^= bit;
        if (i < j) {
            double t = re[i];
            re[i] = re[j];
            re[j] = t;
            t = im[i];
            im[i] = im[j];
            im[j] = t;
        }
    }
    for (unsigned len = 2; len <= n; len <<= 1)
        for (unsigned i = 0; i < n; i += len)
            for (unsigned k = 0; k < len / 2; k++) {
                double c = tw[2 * (n / len * k)], s = sign * tw[2 * (n / len * k) + 1];
                unsigned a = i + k, b = a + len / 2;
                double r = re[b] * c - im[b] * s, m = re[b] * s + im[b] * c;
                re[b] = re[a] - r;
                im[b] = im[a] - m;
                re[a] += r;
                im[a] += m;
            }
}

static struct result bench_fft(void)
{
    enum { N = 4096, TIMES = 20 };
    static double re[N], im[N], tw[N];
    for (unsigned i = 0; i < N / 2; i++) {
        tw[2 * i] = cos(2 * M_PI * i / N);
        tw[2 * i + 1] = sin(2 * M_PI * i / N);
    }
    for (unsigned i = 0; i < N; i++) {
        re[i] = (double)(rng() & 255);
        im[i] = 0;
    }
    start();
    for (unsigned t = 0; t < TIMES; t++) {
        fft(re, im, N, tw, 1);
        fft(re, im, N, tw, -1);
        for (unsigned i = 0; i < N; i++) {
            re[i] /= N;
            im[i] /= N;
        }
    }
    stop();
    uint64_t check = 0;
    for (unsigned i = 0; i < N; i++)
        check = check * 31 + (uint64_t)llround(re[i]);
    return (struct result){2 * TIMES, check};
}

/* The other functions of libm that programs use. */
static struct result bench_libm(void)
{
    enum { COUNT = 100000 };
    double sum = 0;
    start();
    for (unsigned i = 1; i <= COUNT; i++) {
        double x = (double)i * 0.0001;
        sum += exp(-x) + log(x) + pow(x, 1.5) + atan2(x, 2.0) + tanh(x) + cbrt(x) + erf(x) +
               fmod(x, 0.3);
    }
    stop();
    return (struct result){8ull * COUNT, (uint64_t)(int64_t)llround(sum * 1e4)};
}

const struct bench floating_benches[] = {
    {"matmul", bench_matmul, "mul-add"},
    {"spmv", bench_spmv, "mul-add"},
    {"nbody", bench_nbody, "step"},
    {"fft", bench_fft, "transform"},
    {"sin", bench_sin, "call"},
    {"libm", bench_libm, "call"},
    {"x87", bench_x87, "round"},
    {"avx2", bench_avx2, "KiB"},
    {0},
};
