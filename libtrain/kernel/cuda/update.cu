/* Rules of optimizers, one pass over memory each: directions, and the step of a weight along them. The expressions are those of
 * kernel/update_tmpl.h and update_rules.h, operation by operation, so the bits are the CPU's. */
#include "libtrain/kernel/cuda/random.cuh"

#define DIRECTION __device__ void operator()(float (&x)[TR_WIDE], int64_t r, int64_t c, int n) const
enum { GROUP = 128, SHARING = GROUP / TR_WIDE /* lanes with a group of int8 weights */ };

/* bf16 is rounded stochastically, to nearest with key {0,0}. */
static __device__ inline void put_rounded(const tr_mat &t, int64_t r, int64_t c, int n, float (&x)[TR_WIDE], const tr_noise &noise)
{
    if (t.dtype == TR_CUDA_BF16 && !tr_to_nearest(noise)) {
        uint32_t first = noise.first + (uint32_t)(r * t.cols + c);
        EIGHT x[k] = __uint_as_float((unsigned)tr_bf16_stochastic(x[k], first + (uint32_t)k, noise.key) << 16);
    }
    tr_put8(t, r, c, n, x);
}

static __device__ inline float sign_of(float x) { return x > 0 ? 1.0f : x < 0 ? -1.0f : 0.0f; }

/* ---- directions: x at columns [c, c + n) of row r. n may be 0 */

struct along_gradient {
    tr_mat g;
    DIRECTION { tr_get8(x, g, r, c, n); }
};

struct along_scaled {
    tr_mat g;
    const float *f;
    int axis;
    DIRECTION
    {
        tr_get8(x, g, r, c, n);
        EIGHT if (k < n) x[k] *= f[axis == 0 ? r : c + k];
    }
};

struct along_adam {
    tr_mat m, v, g;
    tr_cuda_moments h;
    DIRECTION
    {
        tr_raw gr = {}, mr = {}, vr = {};
        float mm[TR_WIDE], vv[TR_WIDE];
        tr_fetch8(gr, g, r, c, n);
        tr_fetch8(mr, m, r, c, n);
        tr_fetch8(vr, v, r, c, n);
        tr_widen8(x, gr, g.dtype);
        tr_widen8(mm, mr, m.dtype);
        tr_widen8(vv, vr, v.dtype);
        EIGHT {
            mm[k] = h.beta1 * mm[k] + h.keep1 * x[k];
            vv[k] = h.beta2 * vv[k] + h.keep2 * (x[k] * x[k]);
            x[k] = mm[k] / (sqrtf(vv[k]) * h.root + h.eps);
        }
        put_rounded(m, r, c, n, mm, h.noise);
        put_rounded(v, r, c, n, vv, tr_second(h.noise));
    }
};

struct along_sgd {
    tr_mat w, b, g;
    tr_cuda_velocity h;
    DIRECTION
    {
        float u[TR_WIDE] = { 0, 0, 0, 0, 0, 0, 0, 0 };
        tr_get8(x, g, r, c, n);
        if (n) tr_get8_any(u, w, r, c, n);
        EIGHT x[k] += h.decay * u[k];
        if (!b.data) return;
        tr_get8(u, b, r, c, n);
        EIGHT u[k] = h.first ? x[k] : h.momentum * u[k] + h.keep * x[k];
        EIGHT x[k] = h.nesterov ? x[k] + h.momentum * u[k] : u[k];
        tr_put8(b, r, c, n, u);
    }
};

struct along_sign {
    tr_mat m, g;
    tr_cuda_signs h;
    DIRECTION
    {
        tr_get8(x, g, r, c, n);
        if (m.data) {
            float mm[TR_WIDE];
            tr_get8(mm, m, r, c, n);
            EIGHT {
                float u = h.step_m * mm[k] + h.step_g * x[k];
                mm[k] = h.keep_m * mm[k] + h.keep_g * x[k];
                x[k] = u;
            }
            put_rounded(m, r, c, n, mm, h.noise);
        }
        EIGHT x[k] = sign_of(x[k]);
    }
};

/* ---- w = (before w - rate x) after */

template <class D> struct step_rule {
    D along;
    tr_mat w;
    tr_cuda_step a;
    RULE
    {
        tr_raw old = {};
        float x[TR_WIDE], u[TR_WIDE];
        tr_fetch8(old, w, r, c, n);
        along(x, r, c, n);
        tr_widen8(u, old, w.dtype);
        EIGHT u[k] = (a.before * u[k] - a.rate * x[k]) * a.after;
        put_rounded(w, r, c, n, u, a.noise);
    }
};

/* int8: sixteen lanes have a group, find its new grid together and round. Threads beyond the last group go along with n = 0. */
template <class D> static __global__ __launch_bounds__(TR_BLOCK) void step_int8_kernel(D along, tr_mat w, tr_cuda_step a)
{
    int64_t group = ((int64_t)blockIdx.x * TR_BLOCK + threadIdx.x) / SHARING, lane = threadIdx.x % SHARING, c = group % w.groups * GROUP + lane * TR_WIDE;
    bool there = group < w.rows * w.groups;
    int64_t r = there ? group / w.groups : 0;
    int n = !there || c >= w.cols ? 0 : w.cols - c < TR_WIDE ? (int)(w.cols - c) : (int)TR_WIDE;
    float x[TR_WIDE], u[TR_WIDE] = { 0, 0, 0, 0, 0, 0, 0, 0 }, low = 0, high = 0;
    along(x, r, c, n);
    if (n) tr_get8_any(u, w, r, c, n);
    EIGHT if (k < n) {
        u[k] = (a.before * u[k] - a.rate * x[k]) * a.after;
        low = u[k] < low ? u[k] : low;
        high = u[k] > high ? u[k] : high;
    }
    for (int o = SHARING / 2; o; o /= 2) {
        float l = __shfl_xor_sync(0xffffffffu, low, o), h = __shfl_xor_sync(0xffffffffu, high, o);
        low = l < low ? l : low;
        high = h > high ? h : high;
    }
    struct tr_grid8 grid = tr_grid8_between(low, high, a.published_grid);
    if (!n) return;
    if (!lane) w.scale[group] = grid.scale, w.zero[group] = (signed char)grid.zero;
    if (a.draws.data) tr_get8(x, a.draws, r, c, n);
    else EIGHT x[k] = (float)tr_bits16(a.noise.first + (uint32_t)(r * w.cols + c) + (uint32_t)k, a.noise.key) * 0x1p-16f;
    bool nearest = !a.draws.data && tr_to_nearest(a.noise);
    signed char code[TR_WIDE], *q = static_cast<signed char *>(w.data) + r * w.ld + c;
    EIGHT code[k] = nearest ? tr_code8_nearest(u[k], grid) : tr_code8_stochastic(u[k], x[k], grid);
    if (n == TR_WIDE && reinterpret_cast<uintptr_t>(q) % 8 == 0) {
        unsigned half[2] = { 0, 0 };
        EIGHT half[k / 4] |= (unsigned)(unsigned char)code[k] << 8 * (k % 4);
        *reinterpret_cast<uint2 *>(q) = uint2{ half[0], half[1] };
    } else EIGHT if (k < n) q[k] = code[k];
}

template <class D> static int step_weight(tr_mat w, tr_cuda_step a, tr_cuda_stream s, D along)
{
    if (w.dtype != TR_CUDA_INT8) return tr_each(w.rows, w.cols, s, step_rule<D>{ along, w, a });
    if (w.group != GROUP) return (int)cudaErrorInvalidValue;
    return tr_launch(dim3((unsigned)((w.rows * w.groups * SHARING + TR_BLOCK - 1) / TR_BLOCK)), TR_BLOCK, 0, s, step_int8_kernel<D>, along, w, a);
}

/* ---- in place: functions of an element, of two */

#define OF1 __device__ void operator()(float &x) const
#define OF2 __device__ void operator()(float &x, float &u) const

struct clamp_to { float limit; OF1 { x = x > limit ? limit : x < -limit ? -limit : x; } };
struct sign_times { float factor; OF1 { x = x > 0 ? factor : x < 0 ? -factor : 0; } };

struct with_momentum {
    float keep_m, keep_g, out_g, out_m;
    OF2
    {
        u = keep_m * u + keep_g * x;
        x = out_g * x + out_m * u;
    }
};

struct by_root {
    float beta, eps;
    OF2
    {
        u = beta * u + (1 - beta) * (x * x + eps);
        x = x / sqrtf(u);
    }
};

struct cut_step {
    float scale, eps;
    OF2
    {
        float y = fabsf(x) / (scale * u + eps);
        x = copysignf(y < 1 ? y : 1, x) * (x != 0);
    }
};

struct cut_ratio {
    float eps, most;
    OF2
    {
        float y = x / (u > eps ? u : eps);
        x = y > most ? most : y < -most ? -most : y;
    }
};

struct mean_of_squares { float keep, take; OF2 { x = keep * x + take * (u * u); } };

template <class D> struct direction_rule {
    D along;
    tr_mat u;
    RULE
    {
        float x[TR_WIDE];
        along(x, r, c, n);
        tr_put8(u, r, c, n, x);
    }
};

struct outer_rule {
    tr_mat g;
    const float *row, *col;
    RULE
    {
        float x[TR_WIDE];
        tr_get8(x, g, r, c, n);
        EIGHT if (k < n) x[k] *= row[r] * col[c + k];
        tr_put8(g, r, c, n, x);
    }
};

struct lion_rule {
    tr_mat u, m;
    tr_cuda_signs h;
    RULE
    {
        float x[TR_WIDE], mm[TR_WIDE];
        tr_get8(x, u, r, c, n);
        tr_get8(mm, m, r, c, n);
        EIGHT {
            float y = h.step_m * mm[k] + h.step_g * x[k];
            mm[k] = h.keep_m * mm[k] + h.keep_g * x[k];
            x[k] = sign_of(y);
        }
        put_rounded(m, r, c, n, mm, h.noise);
        tr_put8(u, r, c, n, x);
    }
};

static __device__ inline void random_direction(float (&d)[TR_WIDE], const tr_cuda_direction &z, int64_t at, int n)
{
    if (z.given) {
        EIGHT d[k] = k < n ? z.given[at + k] : 0;
        return;
    }
    tr_normals8(d, z.key, at, 1);
    if (z.zeros > 0)
        EIGHT if (tr_uniform_at(z.mask, at + k) < z.zeros) d[k] = 0;
}

struct move_rule {
    tr_mat w;
    float before, scale;
    tr_cuda_direction z;
    RULE
    {
        float x[TR_WIDE], d[TR_WIDE];
        tr_get8(x, w, r, c, n);
        random_direction(d, z, z.first + r * w.cols + c, n);
        EIGHT x[k] = before * x[k] + scale * d[k];
        tr_put8(w, r, c, n, x);
    }
};

struct weigh_rule {
    tr_mat g;
    float scale;
    tr_cuda_direction z;
    RULE
    {
        float x[TR_WIDE], d[TR_WIDE];
        tr_get8(x, g, r, c, n);
        random_direction(d, z, z.first + r * g.cols + c, n);
        EIGHT x[k] *= scale * d[k];
        tr_put8(g, r, c, n, x);
    }
};

#define EACH(t, rule, ...) return tr_each((t).rows, (t).cols, s, rule{ __VA_ARGS__ })

extern "C" {

int tr_cuda_apply(tr_mat w, tr_mat g, tr_cuda_step a, tr_cuda_stream s) { return step_weight(w, a, s, along_gradient{ g }); }
int tr_cuda_apply_scaled(tr_mat w, tr_mat g, const float *f, int axis, tr_cuda_step a, tr_cuda_stream s) { return step_weight(w, a, s, along_scaled{ g, f, axis }); }
int tr_cuda_adam(tr_mat w, tr_mat m, tr_mat v, tr_mat g, tr_cuda_moments h, tr_cuda_step a, tr_cuda_stream s) { return step_weight(w, a, s, along_adam{ m, v, g, h }); }
int tr_cuda_sgd(tr_mat w, tr_mat b, tr_mat g, tr_cuda_velocity h, tr_cuda_step a, tr_cuda_stream s) { return step_weight(w, a, s, along_sgd{ w, b, g, h }); }
int tr_cuda_sign(tr_mat w, tr_mat m, tr_mat g, tr_cuda_signs h, tr_cuda_step a, tr_cuda_stream s) { return step_weight(w, a, s, along_sign{ m, g, h }); }

int tr_cuda_adam_direction(tr_mat u, tr_mat m, tr_mat v, tr_mat g, tr_cuda_moments h, tr_cuda_stream s)
{
    return tr_each(u.rows, u.cols, s, direction_rule<along_adam>{ { m, v, g, h }, u });
}

int tr_cuda_clamp(tr_mat g, float limit, tr_cuda_stream s) { EACH(g, tr_map1<clamp_to>, g, g, { limit }); }
int tr_cuda_momentum(tr_mat g, tr_mat m, float keep_m, float keep_g, float out_g, float out_m, tr_cuda_stream s) { return tr_each(g.rows, g.cols, s, tr_map2<with_momentum, true>{ g, g, m, { keep_m, keep_g, out_g, out_m } }); }
int tr_cuda_scale_outer(tr_mat g, const float *row, const float *col, tr_cuda_stream s) { EACH(g, outer_rule, g, row, col); }
int tr_cuda_root_direction(tr_mat g, tr_mat v, float beta, float eps, tr_cuda_stream s) { return tr_each(g.rows, g.cols, s, tr_map2<by_root, true>{ g, g, v, { beta, eps } }); }
int tr_cuda_sign_scale(tr_mat g, float factor, tr_cuda_stream s) { EACH(g, tr_map1<sign_times>, g, g, { factor }); }
int tr_cuda_lion_direction(tr_mat u, tr_mat m, tr_cuda_signs h, tr_cuda_stream s) { EACH(u, lion_rule, u, m, h); }
int tr_cuda_cut_step(tr_mat g, tr_mat h, float scale, float eps, tr_cuda_stream s) { EACH(g, tr_map2<cut_step>, g, g, h, { scale, eps }); }
int tr_cuda_cut_ratio(tr_mat g, tr_mat h, float eps, float most, tr_cuda_stream s) { EACH(g, tr_map2<cut_ratio>, g, g, h, { eps, most }); }
int tr_cuda_move(tr_mat w, float before, float scale, tr_cuda_direction z, tr_cuda_stream s) { EACH(w, move_rule, w, before, scale, z); }
int tr_cuda_weigh(tr_mat g, float scale, tr_cuda_direction z, tr_cuda_stream s) { EACH(g, weigh_rule, g, scale, z); }
int tr_cuda_mean_squares(tr_mat h, tr_mat g, float keep, float take, tr_cuda_stream s) { EACH(h, tr_map2<mean_of_squares>, h, h, g, { keep, take }); }

}
