/*
 * The control socket: JSON in lines, in the style of QEMU's QMP (docs/monitor.md).  It has a
 * thread of its own, so nothing a client does or fails to do holds up the guest; the machine lock
 * is taken for short moments only.
 */
#ifndef RINGSHIFT_RUNTIME_MONITOR_H
#define RINGSHIFT_RUNTIME_MONITOR_H

#include <stddef.h>

struct machine;
struct monitor;

/*
 * Listens on a Unix socket at `path`, which must not exist, or be the leftover of a process that is
 * gone; it is created with mode 0600 and removed by monitor_destroy().  Becomes the machine's
 * listener.  Before machine_run().  0 and *out, or a negative errno with one sentence in err.
 */
int monitor_create(struct monitor **out, struct machine *m, const char *path, char *err,
                   size_t errlen);
/* Sends what is left to say (SHUTDOWN, for one), and ends.  After machine_run(), before
 * machine_destroy(). */
void monitor_destroy(struct monitor *mon);

#endif
