/*
 * The guest's first process for benchmarks: runs programs named on the kernel command line and
 * powers the machine off.
 *
 *     run=PROGRAM:ARG:ARG,PROGRAM:ARG,...   what to run, in order; "none" runs nothing
 *     idle=SECONDS                          how long to sleep at the end (default 0)
 *     shell                                 start /bin/busybox sh instead
 *
 * Markers for the harness, each a line of its own on the console: "GUEST-INIT" when it starts,
 * "GUEST-BEGIN name" and "GUEST-END name status" around each program, "GUEST-IDLE" before the
 * sleep, "GUEST-DONE" before power-off.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static const char *option(char *cmdline, const char *key)
{
    size_t n = strlen(key);
    for (char *s = cmdline; (s = strstr(s, key)); s += n)
        if ((s == cmdline || s[-1] == ' ') && s[n] == '=')
            return s + n + 1;
    return NULL;
}

static void run(char *words)
{
    char *argv[16], *save = NULL;
    unsigned argc = 0;
    for (char *w = strtok_r(words, ":", &save); w && argc < 15; w = strtok_r(NULL, ":", &save))
        argv[argc++] = w;
    argv[argc] = NULL;
    if (!argc)
        return;
    const char *name = argc > 1 ? argv[1] : argv[0];
    char path[256];
    snprintf(path, sizeof(path), "/%s", argv[0]);
    printf("GUEST-BEGIN %s\n", name);
    pid_t pid = fork();
    if (!pid) {
        execv(path, argv);
        printf("cannot run %s: %s\n", path, strerror(errno));
        _exit(127);
    }
    int status = -1;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (WIFSIGNALED(status))
        printf("GUEST-END %s signal %d\n", name, WTERMSIG(status));
    else
        printf("GUEST-END %s %d\n", name, WEXITSTATUS(status));
}

int main(void)
{
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mkdir("/dev", 0755);
    mkdir("/tmp", 0777);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    mount("tmpfs", "/tmp", "tmpfs", 0, NULL);
    int fd = open("/dev/console", O_RDWR);
    if (fd >= 0) {
        dup2(fd, 0);
        dup2(fd, 1);
        dup2(fd, 2);
        if (fd > 2)
            close(fd);
    }
    setvbuf(stdout, NULL, _IONBF, 0);
    printf("\nGUEST-INIT\n");

    static char cmdline[4096];
    fd = open("/proc/cmdline", O_RDONLY);
    ssize_t n = fd < 0 ? -1 : read(fd, cmdline, sizeof(cmdline) - 1);
    if (n > 0 && cmdline[n - 1] == '\n')
        cmdline[n - 1] = 0;
    if (fd >= 0)
        close(fd);

    const char *idle = option(cmdline, "idle"), *list = option(cmdline, "run");
    double seconds = idle ? atof(idle) : 0;
    if (list) {
        char *copy = strdup(list), *save = NULL;
        copy[strcspn(copy, " ")] = 0;
        for (char *w = strtok_r(copy, ",", &save); w; w = strtok_r(NULL, ",", &save))
            if (strcmp(w, "none"))
                run(w);
        free(copy);
    }
    printf("GUEST-IDLE\n");
    usleep((useconds_t)(seconds * 1e6));
    printf("GUEST-DONE\n");
    tcdrain(1);
    sync();
    reboot(RB_POWER_OFF);
    return 1;
}
