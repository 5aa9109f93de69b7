/* report.html: one page with loss, throughput and memory as inline SVG, readable without a network. */
#ifndef RECIPE_REPORT_H
#define RECIPE_REPORT_H

/* Writes folder/report.html from folder/metrics.jsonl (none when that is empty). title: what the page calls itself; config:
 * the resolved recipe as text. Atomic. */
int report_write(const char *folder, const char *title, const char *config);

#endif
