#include "libtrain/base/log.h"
#include <stdarg.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

static bool quiet, line_open;

static void say(const char *prefix, const char *format, va_list args)
{
    if (quiet) return;
    flockfile(stderr);
    if (line_open) fputs("\r\033[K", stderr);
    line_open = false;
    fputs(prefix, stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    funlockfile(stderr);
}

void tr_log_quiet(bool on) { quiet = on; }

void tr_info(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    say("train: ", format, args);
    va_end(args);
}

void tr_warn(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    say("train: warning: ", format, args);
    va_end(args);
}

void tr_progress(bool keep, const char *format, ...)
{
    bool terminal = isatty(STDERR_FILENO);
    if (quiet || (!terminal && !keep)) return;
    va_list args;
    va_start(args, format);
    flockfile(stderr);
    if (line_open) fputs("\r\033[K", stderr);
    char line[512];
    struct winsize w;
    vsnprintf(line, sizeof line, format, args);
    /* A line that wraps could not be replaced. */
    if (terminal && !keep && !ioctl(STDERR_FILENO, TIOCGWINSZ, &w) && w.ws_col > 1 && w.ws_col < sizeof line) line[w.ws_col - 1] = 0;
    fputs(line, stderr);
    if (keep || !terminal) fputc('\n', stderr);
    fflush(stderr);
    line_open = terminal && !keep;
    funlockfile(stderr);
    va_end(args);
}
