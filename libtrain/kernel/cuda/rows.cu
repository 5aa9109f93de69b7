/* Gathers and scatters of rows, and rotary positions. */
#include "libtrain/kernel/cuda/device.cuh"


struct embed_rule {
    tr_mat y, w;
    const int32_t *ids;
    int acc;
    RULE
    {
        float v[TR_WIDE], old[TR_WIDE];
        tr_get8_any(v, w, ids[r], c, n);
        if (acc) {
            tr_get8(old, y, r, c, n);
            EIGHT v[k] += old[k];
        }
        tr_put8(y, r, c, n, v);
    }
};

struct scatter_rule {
    tr_mat y, x;
    const int32_t *rows;
    RULE
    {
        float v[TR_WIDE];
        tr_get8(v, x, r, c, n);
        tr_put8(y, rows[r], c, n, v);
    }
};

/* Stretches of the first half of each head; the second half goes along. */
struct rope_rule {
    tr_mat x, cs;
    const int32_t *pos;
    int64_t half;
    float sign;
    RULE   /* c: of the halves side by side */
    {
        if (half % TR_WIDE == 0) {   /* a stretch lies within one head */
            int64_t d = (unsigned)c % (unsigned)half, at = (int64_t)((unsigned)c / (unsigned)half) * 2 * half + d;
            tr_raw first = {}, second = {}, c_raw = {}, s_raw = {};
            float a[TR_WIDE], b[TR_WIDE], cosine[TR_WIDE], sine[TR_WIDE];
            tr_fetch8(first, x, r, at, n);
            tr_fetch8(second, x, r, at + half, n);
            tr_fetch8(c_raw, cs, pos[r], d, n);
            tr_fetch8(s_raw, cs, pos[r], half + d, n);
            tr_widen8(cosine, c_raw, cs.dtype);
            tr_widen8(sine, s_raw, cs.dtype);
            tr_widen8(a, first, x.dtype);
            tr_widen8(b, second, x.dtype);
            EIGHT {
                float sn = sign * sine[k], u = a[k] * cosine[k] - b[k] * sn;
                b[k] = b[k] * cosine[k] + a[k] * sn;
                a[k] = u;
            }
            tr_put8(x, r, at, n, a);
            tr_put8(x, r, at + half, n, b);
            return;
        }
        for (int64_t i = c; i < c + n; i++) {
            int64_t d = i % half, at = i / half * 2 * half + d;
            float cosine = tr_get(cs, pos[r], d), sn = sign * tr_get(cs, pos[r], half + d), a = tr_get(x, r, at), b = tr_get(x, r, at + half);
            tr_put(x, r, at, a * cosine - b * sn);
            tr_put(x, r, at + half, b * cosine + a * sn);
        }
    }
};

enum { SCAN = 4, SCANNED = SCAN * TR_BLOCK /* ids looked at together */, FETCHED = 4 /* rows on their way at once */ };
struct embed_shared { unsigned any[2][TR_BLOCK / 32]; unsigned match[SCAN][TR_BLOCK / 32]; int at[SCANNED]; };

/* The block of an id's first token adds all its tokens in order; the others find an earlier one, from the nearest on, and leave. Grid:
 * tokens, stretches of 2048 columns. */
static __global__ __launch_bounds__(TR_BLOCK, 4) void embed_backward_kernel(tr_mat dw, tr_mat dy, const int32_t *ids)
{
    embed_shared &s = tr_shared<embed_shared>();
    int first = (int)blockIdx.x, tokens = (int)dy.rows, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int32_t id = ids[first];
    for (int end = first, turn = 0; end > 0; end -= SCANNED, turn ^= 1) {
        bool found = false;
#pragma unroll
        for (int k = 0; k < SCAN; k++) {
            int i = end - 1 - k * TR_BLOCK - (int)threadIdx.x;
            found = found || (i >= 0 && ids[i] == id);
        }
        unsigned any = __ballot_sync(0xffffffffu, found);
        if (!lane) s.any[turn][warp] = any;
        __syncthreads();   /* one for each turn: its words are written again only after the next one */
        for (int w = 0; w < TR_BLOCK / 32; w++)
            if (s.any[turn][w]) return;   /* the whole block */
    }
    int64_t c = ((int64_t)blockIdx.y * TR_BLOCK + threadIdx.x) * TR_WIDE;
    int n = dy.cols - c < TR_WIDE ? (int)(dy.cols - c) : (int)TR_WIDE;
    float sum[TR_WIDE];
    if (n > 0) tr_get8(sum, dw, id, c, n);
    for (int base = first; base < tokens; base += SCANNED) {
        unsigned match[SCAN];
#pragma unroll
        for (int k = 0; k < SCAN; k++) {
            int i = base + k * TR_BLOCK + (int)threadIdx.x;
            match[k] = __ballot_sync(0xffffffffu, i < tokens && ids[i] == id);
        }
        __syncthreads();   /* the last list is done with */
#pragma unroll
        for (int k = 0; k < SCAN; k++)
            if (!lane) s.match[k][warp] = match[k];
        __syncthreads();
        int count = 0;
#pragma unroll
        for (int k = 0; k < SCAN; k++)
            for (int w = 0; w < TR_BLOCK / 32; w++) {
                if (w == warp && match[k] >> lane & 1) s.at[count + __popc(match[k] & ((1u << lane) - 1))] = base + k * TR_BLOCK + (int)threadIdx.x;
                count += __popc(s.match[k][w]);
            }
        __syncthreads();
        if (n > 0)
            for (int j = 0; j < count; j += FETCHED) {
                tr_raw d[FETCHED] = {};
#pragma unroll
                for (int u = 0; u < FETCHED; u++)
                    if (j + u < count) tr_fetch8(d[u], dy, s.at[j + u], c, n);
#pragma unroll
                for (int u = 0; u < FETCHED; u++)
                    if (j + u < count) {
                        float x[TR_WIDE];
                        tr_widen8(x, d[u], dy.dtype);
                        EIGHT sum[k] += x[k];
                    }
            }
    }
    if (n > 0) tr_put8(dw, id, c, n, sum);
}

extern "C" {

int tr_cuda_embed(tr_mat y, tr_mat w, const int32_t *ids, int acc, tr_cuda_stream s) { return tr_each(y.rows, y.cols, s, embed_rule{ y, w, ids, acc }); }

int tr_cuda_embed_backward(tr_mat dw, tr_mat dy, const int32_t *ids, tr_cuda_stream s)
{
    dim3 grid((unsigned)dy.rows, (unsigned)((dy.cols + TR_BLOCK * TR_WIDE - 1) / (TR_BLOCK * TR_WIDE)));
    return tr_launch(grid, TR_BLOCK, sizeof(embed_shared), s, embed_backward_kernel, dw, dy, ids);
}

int tr_cuda_scatter(tr_mat y, tr_mat x, const int32_t *rows, tr_cuda_stream s) { return tr_each(x.rows, x.cols, s, scatter_rule{ y, x, rows }); }

int tr_cuda_rope(tr_mat x, tr_mat cs, const int32_t *pos, int64_t heads, int inverse, tr_cuda_stream s)
{
    return tr_each(x.rows, heads * (cs.cols / 2), s, rope_rule{ x, cs, pos, cs.cols / 2, inverse ? -1.0f : 1.0f });
}

}
