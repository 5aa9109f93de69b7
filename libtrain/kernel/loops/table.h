/* All entries of a table from one source, compiled once for each instruction set. Before including: NAME(x) is the symbol
 * of this variant, TABLE_NAME its name, EXP and TANH its functions, ATTENTION(x) its attention and loss. */
#include "libtrain/kernel/attention.h"
#include "libtrain/base/normal.h"
#include "libtrain/kernel/kernel.h"
#include "libtrain/kernel/loops/rows.h"
#include <math.h>
#include <stdlib.h>
#include "libtrain/kernel/loops/elementwise.h"
#include "libtrain/kernel/loops/embed.h"
#include "libtrain/kernel/loops/norm.h"

extern const struct tr_kernels NAME(table);
const struct tr_kernels NAME(table) = {
    .name = TABLE_NAME, .write = NAME(write), .read = NAME(read), .copy = NAME(copy), .fill = NAME(fill), .random_normal = NAME(random_normal),
    .add = NAME(add), .axpy = NAME(axpy), .scale = NAME(scale), .sum_squares = NAME(sum_squares),
    .sum_squares_panels = NAME(sum_squares_panels), .all_finite = NAME(all_finite),
    .embed = NAME(embed), .embed_backward = NAME(embed_backward), .scatter = NAME(scatter), .rms_norm = NAME(rms_norm),
    .rms_norm_rebuild = NAME(rms_norm_rebuild), .rms_norm_backward = NAME(rms_norm_backward), .layer_norm = NAME(layer_norm),
    .layer_norm_rebuild = NAME(layer_norm_rebuild), .layer_norm_backward = NAME(layer_norm_backward), .rope = NAME(rope),
    .swiglu = NAME(swiglu), .swiglu_backward = NAME(swiglu_backward), .gelu = NAME(gelu), .gelu_backward = NAME(gelu_backward),
    .add_bias = NAME(add_bias), .bias_backward = NAME(bias_backward), .attention = ATTENTION(attention),
    .attention_backward = ATTENTION(attention_backward), .attention_work = ATTENTION(attention_work),
    .attention_cached = ATTENTION(attention_cached), .cross_entropy = ATTENTION(cross_entropy),
    .softmax = ATTENTION(softmax), .softmax_gradient = NAME(softmax_gradient),
};
