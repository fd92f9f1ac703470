/*
 * The program: puts the process in order and hands over to the command line.
 */
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include "runtime/cli.h"

/* Descriptors 0 to 2 must be open, or the next file opened would become the guest's console. */
static int open_standard_fds(void)
{
    for (int i = STDIN_FILENO; i <= STDERR_FILENO; i++) {
        int pipes[2];

        if (fcntl(i, F_GETFD) >= 0 || open("/dev/null", O_RDWR) == i)
            continue;
        /* No /dev: the reading end of a pipe that nobody writes to is at its end, too. */
        if (pipe(pipes))
            return -1;
        close(pipes[1]); /* pipes[0] is i, the lowest free */
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (open_standard_fds()) {
        cli_say("cannot open anything in place of the closed stdin, stdout or stderr");
        return CLI_RESOURCE;
    }
    /* A file size limit (ulimit -f) on guest memory shall be an error, not our death. */
    signal(SIGXFSZ, SIG_IGN);
    return cli_main(argc, argv);
}
