/* Normal numbers of a stream. */
#include "libtrain/kernel/cuda/random.cuh"

struct normal_rule {
    tr_mat y;
    struct tr_key key;
    double std;
    RULE
    {
        float x[TR_WIDE];
        tr_normals8(x, key, r * y.cols + c, std);
        tr_put8(y, r, c, n, x);
    }
};

extern "C" int tr_cuda_random_normal(tr_mat y, struct tr_key key, float std, tr_cuda_stream s)
{
    return tr_each(y.rows, y.cols, s, normal_rule{ y, key, (double)std });
}
