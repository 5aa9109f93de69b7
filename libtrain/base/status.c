#include "libtrain/base/status.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local char message[2048];

int tr_fail(int code, const char *format, ...)
{
    char text[sizeof message]; /* the arguments may contain tr_message() itself */
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (char *c = text; *c; c++) /* one error is one line, whatever a hostile file put into a name */
        if ((unsigned char)*c < 32) *c = ' ';
    memcpy(message, text, sizeof message);
    return code;
}

const char *tr_message(void) { return message; }
