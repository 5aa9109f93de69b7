/* What a dataset holds, for people and programs (`train data`). */
#ifndef TR_DATA_SHOW_H
#define TR_DATA_SHOW_H
#include "libtrain/data/data.h"
#include <stdio.h>

/* json: each example in file order as {"ids": [...], "counted": [...]}, one line each. Else counts and a few examples,
 * counted tokens in colour or in brackets. Errors: TR_EFAIL when `out` cannot be written. */
int tr_data_show(FILE *out, const struct tr_dataset *d, const struct tr_tokenizer *t, bool json, bool colour);

#endif
