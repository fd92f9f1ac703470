/*
 * The terminal: our stdin and stdout as the other end of the guest's first serial port.
 *
 * A tty on stdin is put into raw mode while the guest has it and restored on every way out,
 * signals and crashes included.  Ctrl-A is the escape key of a tty (a pipe or file is passed on
 * byte for byte).  Nothing here blocks: output that the consumer cannot take yet waits in a bounded
 * buffer, behind which the guest's UART stops transmitting, as it does on a real line with flow
 * control; no output is lost.
 *
 * The process's signals come here as well, because each of them concerns the terminal: SIGINT,
 * SIGTERM, SIGHUP and SIGQUIT end the VM in good order, SIGTSTP and SIGCONT hand the tty to the
 * shell and take it back.
 */
#ifndef RINGSHIFT_RUNTIME_TERMINAL_H
#define RINGSHIFT_RUNTIME_TERMINAL_H

#include <stddef.h>
#include <stdio.h>

struct chardev;
struct machine;
struct terminal;

/*
 * Takes over fds 0 and 1, which must be open.  Blocks the signals named above in the calling
 * thread, and so in every thread it starts later, and ignores SIGPIPE; call it before there are
 * other threads.  At most one per process, because a tty and signals are the process's.
 * 0 or negative errno with one sentence in err.
 */
int terminal_create(struct terminal **out, char *err, size_t errlen);

/* The chardev to connect a serial port to; lives as long as the terminal. */
struct chardev *terminal_chardev(struct terminal *t);

/* Raw mode on, input and signals on the machine's event loop.  Call before machine_run(), once.
 * 0 or negative errno. */
int terminal_attach(struct terminal *t, struct machine *m);

/* Has input from a pipe or file given as soon as the guest takes it, not only once the guest says
 * that it is ready (RTS), which SeaBIOS never does.  Before terminal_attach(). */
void terminal_input_at_once(struct terminal *t);

/* Takes the terminal off the machine; call after machine_run() and before machine_destroy(). */
void terminal_detach(struct terminal *t);

/* Writes out what is still buffered and restores the tty, so that stderr is readable.  Waits for a
 * slow consumer as any program does, for two seconds at most once a signal or Ctrl-A X has asked
 * for the end.  After terminal_detach(). */
void terminal_restore(struct terminal *t);

/* Restores if that is still to do, gives back fds, signal mask and handlers, and frees. */
void terminal_destroy(struct terminal *t);

/* The signal that asked the VM to end, SIGPIPE when stdout's reader went away, or 0. */
int terminal_end_signal(const struct terminal *t);

/* Restores the tty from anywhere: async-signal-safe, idempotent, harmless without a terminal.  For
 * handlers of fatal signals, which the process does not come back from. */
void terminal_emergency_restore(void);

#endif
