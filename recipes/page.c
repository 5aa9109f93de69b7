#include "recipes/page.h"
#include "libtrain/base/status.h"
#include "recipes/plot.h"
#include <math.h>

static const char head[] =
    "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\n"
    "<meta name=\"color-scheme\" content=\"light dark\"><style>\n"
    ":root{--ink:#222;--soft:#666;--back:#fafafa;--card:#fff;--edge:#ddd;--bar:#cfe0f5}\n"
    "@media(prefers-color-scheme:dark){:root{--ink:#e4e4e4;--soft:#a5a5a5;--back:#131518;--card:#1c1e22;--edge:#34373d;--bar:#2b4568}}\n"
    "body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back);max-width:1000px;margin:2em auto;padding:0 1em}\n"
    "h1{font-size:1.5em;margin:0 0 .2em}h2{font-size:1.1em;margin:1.6em 0 .5em}.sub{color:var(--soft);margin:.3em 0 1.4em}\n"
    "body>svg,.grid>svg{width:100%;height:auto;border:1px solid var(--edge);border-radius:6px;margin:.4em 0;box-sizing:border-box}\n"
    ".grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(400px,1fr));gap:0 .8em}.cards{display:flex;flex-wrap:wrap;gap:.7em}\n"
    ".card{background:var(--card);border:1px solid var(--edge);border-radius:6px;padding:.5em .9em}\n"
    ".card b{display:block;font-size:1.25em}.card span{color:var(--soft);font-size:.85em}\n"
    ".wide{overflow-x:auto;background:var(--card);border:1px solid var(--edge);border-radius:6px}table{border-collapse:collapse;width:100%;font-size:13.5px}\n"
    "th,td{padding:.35em .6em;text-align:right;border-bottom:1px solid var(--edge);white-space:nowrap}th{font-weight:600;color:var(--soft);vertical-align:bottom}\n"
    "th small{display:block;font-weight:400}tr:last-child td{border-bottom:0}th:first-child,td:first-child,.left{text-align:left}.left{white-space:normal}\n"
    ".bar{background:linear-gradient(90deg,var(--bar) var(--w),transparent var(--w)) no-repeat 0 50%/100% 72%}\n"
    ".swatch{display:inline-block;width:11px;height:11px;border-radius:2px;margin-right:.5em}dt{font-weight:600;margin-top:.4em}dd{margin:0 0 0 1em;color:var(--soft)}\n"
    "pre{background:var(--card);border:1px solid var(--edge);border-radius:6px;padding:.8em;font-size:13px;columns:20em;overflow-wrap:anywhere;"
    "white-space:pre-wrap}summary{cursor:pointer;font-weight:600;margin:1.6em 0 .5em}\n"
    "</style>\n<title>";

int page_begin(struct tr_buf *o, const char *title)
{
    TR_TRY(tr_buf_puts(o, head));
    TR_TRY(plot_escape(o, title));
    TR_TRY(tr_buf_puts(o, "</title>\n<h1>"));
    TR_TRY(plot_escape(o, title));
    return tr_buf_puts(o, "</h1>\n");
}

int page_card(struct tr_buf *o, const char *name, int digits, double value, const char *unit)
{
    if (!isfinite(value)) return tr_buf_printf(o, "<div class=\"card\"><b>–</b><span>%s</span></div>", name);
    return tr_buf_printf(o, "<div class=\"card\"><b>%.*f%s</b><span>%s</span></div>", digits, value, unit, name);
}

int page_duration(struct tr_buf *o, double s)
{
    if (!(s >= 0 && s < 1e9)) return tr_buf_puts(o, "?");
    if (s < 60) return tr_buf_printf(o, "%.0f s", s);
    if (s < 3600) return tr_buf_printf(o, "%d min %02d s", (int)(s / 60), (int)s % 60);
    return tr_buf_printf(o, "%d h %02d min", (int)(s / 3600), (int)(s / 60) % 60);
}

int page_end(struct tr_buf *o, const char *recipe)
{
    TR_TRY(tr_buf_puts(o, "<details><summary>Recipe, every key resolved</summary>\n<pre>"));
    TR_TRY(plot_escape(o, recipe));
    return tr_buf_puts(o, "</pre></details>\n</html>\n");
}
