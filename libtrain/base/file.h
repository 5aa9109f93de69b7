/* Files: whole reads, read-only maps, and writing that leaves either the old file or the new one, never half. */
#ifndef TR_FILE_H
#define TR_FILE_H
#include "libtrain/base/buf.h"
#include <stdbool.h>
#include <stdio.h>

/* Appends the whole file at `path` to `b`. Errors: TR_EINPUT naming path and reason. */
int tr_read_file(struct tr_buf *b, const char *path);

struct tr_map { const unsigned char *data; size_t size; }; /* {0} is unmapped */
/* Maps a file read-only. An empty file gives size 0 and NULL. Errors: TR_EINPUT. */
int tr_map_open(struct tr_map *m, const char *path);
void tr_map_close(struct tr_map *m);

/* A file in the making: written beside `path` as a hidden temporary, moved there by commit after fsync of file and
 * folder. Release without commit removes it. Errors: TR_EFAIL naming path and reason (a full disk too). */
struct tr_tmpfile { FILE *f; char *path, *tmp; };
int tr_tmpfile_open(struct tr_tmpfile *t, const char *path);
int tr_tmpfile_commit(struct tr_tmpfile *t);
void tr_tmpfile_release(struct tr_tmpfile *t);

/* The whole text as folder/name, in that way. */
int tr_write_file(const char *folder, const char *name, const struct tr_buf *text);

/* Creates the folder and its parents. Errors: TR_EFAIL. */
int tr_mkdirs(const char *path);
bool tr_is_dir(const char *path);
bool tr_exists(const char *path);
/* *out = "a/b", the caller's to free. */
int tr_path_join(char **out, const char *a, const char *b);

#endif
