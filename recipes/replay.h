/* `train replay`: recorded gradients through an optimizer, for comparison with other implementations. */
#ifndef RECIPE_REPLAY_H
#define RECIPE_REPLAY_H

/* in: root attributes `optimizer`, `steps`, `lr` and hyper-parameters; /param/NAME with attribute role (matrix, embedding,
 * vector), init [shape], grad [steps, shape], and what was drawn, e.g. projection/K. out: /param/NAME/weight [steps, shape].
 * Nothing is left at `out` after an error. Errors: TR_EINPUT for files of another form or hyper-parameters that the optimizer
 * does not have. */
int recipe_replay(const char *in, const char *out);

#endif
