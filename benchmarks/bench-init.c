/*
 * Runs a list of benchmark programs: as the first process of a guest, or natively in a private view
 * of the same files, so that both run the same programs on the same paths.
 *
 *     bench-init                  (as PID 1) sets the system up, runs /jobs, powers the machine off
 *     bench-init ROOT JOBS        (natively) runs the jobs in the file with ROOT as root folder, on
 *                                 one CPU, in namespaces of its own: nothing outside changes. Needs
 *                                 root or unprivileged user namespaces; exits with 4 without
 * either.
 *
 * Each line of a job file is "NAME KIND COMMAND"; a line "idle SECONDS" sleeps.  Kinds:
 *     self SECONDS PROGRAM ARG...   PROGRAM measures itself and prints RESULT lines (rsbench.c)
 *     time SECONDS PROGRAM ARG...   its runs are timed here, and what it prints is the check value
 *     sh, selfsh SECONDS TEXT       as time and self, for a command line of the shell
 * Timed programs are repeated until SECONDS have passed, and at least three times unless that takes long:
 * the first run finds nothing translated and no file read.
 *
 * Lines for the harness: "GUEST-INIT", "GUEST-BEGIN name", "GUEST-END name status", "GUEST-IDLE",
 * "GUEST-DONE", and "RESULT name ns first_ns check rounds".
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { MAX_ROUNDS = 64, MIN_ROUNDS = 3, MAX_ARGS = 64 };
static const double long_round = 3; /* seconds */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int spawn(char **argv, const char *output)
{
    pid_t pid = fork();
    if (!pid) {
        int null = open("/dev/null", O_RDONLY);
        if (null >= 0)
            dup2(null, 0);
        if (output) {
            int fd = open(output, O_WRONLY | O_CREAT | O_TRUNC, 0600);
            if (fd >= 0) {
                dup2(fd, 1);
                dup2(fd, 2);
            }
        }
        execv(argv[0], argv);
        printf("cannot run %s: %s\n", argv[0], strerror(errno));
        _exit(127);
    }
    int status = -1;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return status;
}

/* FNV-1a, 64 bits, of a file; 0 if it cannot be read. */
static uint64_t hash_file(const char *path)
{
    uint64_t h = 0xcbf29ce484222325ull;
    unsigned char buffer[4096];
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return 0;
    for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;)
        for (ssize_t i = 0; i < n; i++)
            h = (h ^ buffer[i]) * 0x100000001b3ull;
    close(fd);
    return h;
}

static void show_file(const char *path)
{
    FILE *f = fopen(path, "r");
    char line[200];
    for (unsigned i = 0; f && i < 10 && fgets(line, sizeof(line), f); i++)
        printf("| %s", line);
    if (f)
        fclose(f);
}

static int compare_double(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static int run_timed(const char *name, double seconds, char **argv)
{
    static const char output[] = "/tmp/.output";
    double rounds[MAX_ROUNDS], total = 0, first = 0;
    uint64_t check = 0;
    unsigned n = 0;
    do {
        double begin = now();
        int status = spawn(argv, output);
        rounds[n] = now() - begin;
        if (status) {
            show_file(output);
            return status;
        }
        uint64_t h = hash_file(output);
        if (n && h != check) {
            printf("%s: another output than in the first run:\n", name);
            show_file(output);
            return 3 << 8;
        }
        check = h;
        first = n ? first : rounds[0];
        total += rounds[n++];
    } while (n < MAX_ROUNDS && (total < seconds || (n < MIN_ROUNDS && first < long_round)));
    qsort(rounds, n, sizeof(rounds[0]), compare_double);
    double median = n % 2 ? rounds[n / 2] : (rounds[n / 2 - 1] + rounds[n / 2]) / 2;
    printf("RESULT %s %.0f %.0f %016llx %u\n", name, median * 1e9, first * 1e9,
           (unsigned long long)check, n);
    return 0;
}

static void run_line(char *line)
{
    char *rest = line;
    const char *name = strsep(&rest, " "), *kind = strsep(&rest, " ");
    const char *time = strsep(&rest, " ");
    if (!*name || *name == '#' || !kind)
        return;
    if (!strcmp(name, "idle")) {
        printf("GUEST-IDLE\n");
        usleep((useconds_t)(atof(kind) * 1e6));
        return;
    }
    if (!time || !rest) {
        printf("GUEST-END %s bad line\n", name);
        return;
    }
    char *argv[MAX_ARGS] = {NULL};
    unsigned argc = 0;
    bool itself = !strncmp(kind, "self", 4), shell = !strcmp(kind + (itself ? 4 : 0), "sh");
    if (shell) {
        argv[0] = "/bin/sh";
        argv[1] = "-c";
        argv[2] = rest;
    } else {
        for (char *w; (w = strsep(&rest, " ")) && argc < MAX_ARGS - 1;)
            if (*w)
                argv[argc++] = w;
    }
    printf("GUEST-BEGIN %s\n", name);
    int status = itself ? spawn(argv, NULL) : run_timed(name, atof(time), argv);
    if (WIFSIGNALED(status))
        printf("GUEST-END %s signal %d\n", name, WTERMSIG(status));
    else
        printf("GUEST-END %s %d\n", name, WEXITSTATUS(status));
}

static char *read_all(const char *path)
{
    int fd = open(path, O_RDONLY);
    struct stat st;
    if (fd < 0 || fstat(fd, &st))
        return NULL;
    char *text = calloc(1, (size_t)st.st_size + 1);
    if (text && read(fd, text, (size_t)st.st_size) < 0)
        text[0] = 0;
    close(fd);
    return text;
}

static void run_jobs(char *text)
{
    while (text)
        run_line(strsep(&text, "\n"));
}

static void environment(void)
{
    clearenv();
    setenv("PATH", "/usr/bin:/bin", 1);
    setenv("HOME", "/tmp", 1);
    setenv("LC_ALL", "C", 1);
    setvbuf(stdout, NULL, _IONBF, 0);
}

static void put(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        fprintf(stderr, "bench-init: %s: %s\n", path, strerror(errno));
    if (fd >= 0)
        close(fd);
}

static int no_view(const char *what)
{
    fprintf(stderr,
            "bench-init: %s: %s; natively the benchmarks run in a folder of their own, which needs "
            "root or unprivileged user namespaces (kernel.unprivileged_userns_clone=1)\n",
            what, strerror(errno));
    return 4;
}

static int native(const char *root, const char *jobs)
{
    char *text = read_all(jobs), path[4096], map[64];
    uid_t uid = getuid();
    gid_t gid = getgid();
    if (!text) {
        fprintf(stderr, "bench-init: cannot read %s: %s\n", jobs, strerror(errno));
        return 2;
    }
    /* One CPU, as the guest has. */
    cpu_set_t set;
    if (!sched_getaffinity(0, sizeof(set), &set))
        for (int i = CPU_SETSIZE - 1; i >= 0; i--)
            if (CPU_ISSET(i, &set)) {
                CPU_ZERO(&set);
                CPU_SET(i, &set);
                sched_setaffinity(0, sizeof(set), &set);
                break;
            }
    if (unshare(CLONE_NEWNS | (uid ? CLONE_NEWUSER : 0)))
        return no_view("unshare");
    if (uid) {
        put("/proc/self/setgroups", "deny");
        snprintf(map, sizeof(map), "0 %u 1", (unsigned)uid);
        put("/proc/self/uid_map", map);
        snprintf(map, sizeof(map), "0 %u 1", (unsigned)gid);
        put("/proc/self/gid_map", map);
    }
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
        return no_view("making mounts private");
    static const char *const shared[] = {"proc", "dev"};
    for (unsigned i = 0; i < 2; i++) {
        char from[16];
        snprintf(from, sizeof(from), "/%s", shared[i]);
        snprintf(path, sizeof(path), "%s/%s", root, shared[i]);
        if (mount(from, path, NULL, MS_BIND | MS_REC, NULL))
            return no_view(path);
    }
    snprintf(path, sizeof(path), "%s/tmp", root);
    if (mount("tmpfs", path, "tmpfs", 0, NULL))
        return no_view(path);
    if (chroot(root) || chdir("/"))
        return no_view(root);
    environment();
    run_jobs(text);
    printf("GUEST-DONE\n");
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 3)
        return native(argv[1], argv[2]);
    if (getpid() != 1) {
        fprintf(stderr, "bench-init: usage: bench-init ROOT JOBS\n");
        return 2;
    }
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
    environment();
    printf("\nGUEST-INIT\n");
    run_jobs(read_all("/jobs"));
    printf("GUEST-DONE\n");
    tcdrain(1);
    sync();
    reboot(RB_POWER_OFF);
    return 1;
}
