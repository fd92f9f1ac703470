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
    int fd;

    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd < 0)
        return -1;
    close(fd);
    return 0;
}

int main(int argc, char **argv)
{
    if (open_standard_fds())
        return CLI_RESOURCE;
    /* A file size limit (ulimit -f) on guest memory shall be an error, not our death. */
    signal(SIGXFSZ, SIG_IGN);
    return cli_main(argc, argv);
}
