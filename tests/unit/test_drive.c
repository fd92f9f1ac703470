/* Drives from options: image sizes, the drives that every PC has, media that come and go. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "runtime/drive.h"

static struct drive_set set;
static char err[5000];

/* A file of this many bytes, each 0x5a; its name, good as long as the process lives. */
static const char *file(uint64_t bytes, int *fd_out)
{
    static char path[8][64];
    static unsigned n;
    int fd = memfd_create("image", 0);
    char *buf = malloc(bytes ? bytes : 1);

    memset(buf, 0x5a, bytes);
    cr_assert_eq(write(fd, buf, bytes), (ssize_t)bytes);
    free(buf);
    if (fd_out)
        *fd_out = fd;
    n = (n + 1) % 8;
    snprintf(path[n], sizeof(path[n]), "/proc/self/fd/%d", fd);
    return path[n];
}

static int add(enum drive_kind kind, const char *text, bool snapshot)
{
    struct drive_options o;

    err[0] = '\0';
    cr_assert_eq(drive_parse(&o, kind, text, err, sizeof(err)), 0, "%s", err);
    return drives_add(&set, &o, DRIVE_BUS_IDE, snapshot, err, sizeof(err));
}

static void setup(void)
{
    cr_assert_eq(drives_init(&set, err, sizeof(err)), 0);
}

static void teardown(void)
{
    drives_destroy(&set, err, sizeof(err));
}

TestSuite(drive, .init = setup, .fini = teardown);

/* GRUB's rescue floppy has 1296384 bytes, a boot sector 512. */
Test(drive, floppy_that_ends_early)
{
    int fd;
    uint8_t sector[512], zero[512] = {0};
    struct block_device *d;

    cr_assert_eq(add(DRIVE_FLOPPY, file(1296384, &fd), false), 0, "%s", err);
    d = set.drive[0].dev;
    cr_assert_eq(d->size, 1474560);
    cr_assert_eq(set.drive[0].floppy, FLOPPY_1M44);
    cr_assert_eq(block_read(d, 1296384 - 512, sector, 512), 0);
    cr_assert_eq(sector[0], 0x5a);
    cr_assert_eq(block_read(d, 1296384, sector, 512), 0);
    cr_assert_arr_eq(sector, zero, 512);
    cr_assert_eq(lseek(fd, 0, SEEK_END), 1296384, "reading changes nothing");
    memset(sector, 0x77, sizeof(sector));
    cr_assert_eq(block_write(d, 1474560 - 512, sector, 512), 0);
    cr_assert_eq(lseek(fd, 0, SEEK_END), 1474560, "what is written is kept");
    cr_assert_eq(block_read(d, 1474560 - 1024, sector, 512), 0);
    cr_assert_arr_eq(sector, zero, 512);
}

Test(drive, floppy_snapshot_that_ends_early)
{
    int fd;
    uint8_t sector[512] = {1, 2, 3}, back[512];
    struct block_device *d;

    cr_assert_eq(add(DRIVE_FLOPPY, file(512, &fd), true), 0, "%s", err);
    d = set.drive[0].dev;
    cr_assert_eq(d->size, 1474560);
    cr_assert_eq(block_write(d, 100 * 512, sector, 512), 0);
    cr_assert_eq(block_read(d, 100 * 512, back, 512), 0);
    cr_assert_arr_eq(back, sector, 512);
    cr_assert_eq(block_read(d, 0, back, 512), 0);
    cr_assert_eq(back[511], 0x5a);
    cr_assert_eq(block_read(d, 1474560 - 512, back, 512), 0);
    cr_assert_eq(lseek(fd, 0, SEEK_END), 512);
}

Test(drive, floppy_sizes)
{
    static const struct {
        uint64_t bytes, size;
        enum floppy_drive_type drive;
    } cases[] = {
        {1474560, 1474560, FLOPPY_1M44}, {1474500, 1474560, FLOPPY_1M44},
        {737280, 737280, FLOPPY_1M44},   {368640, 368640, FLOPPY_1M2},
        {1228800, 1228800, FLOPPY_1M2},  {2949120, 2949120, FLOPPY_2M88},
        {1474561, 2949120, FLOPPY_2M88}, {2949119, 2949120, FLOPPY_2M88},
        {737281, 1474560, FLOPPY_1M44},  {1, 1474560, FLOPPY_1M44},
    };

    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        cr_assert_eq(add(DRIVE_FLOPPY, file(cases[i].bytes, NULL), false), 0, "%s", err);
        cr_assert_eq(set.drive[i].dev->size, cases[i].size, "%lu", (long)cases[i].bytes);
        cr_assert_eq(set.drive[i].floppy, cases[i].drive, "%lu", (long)cases[i].bytes);
    }
    cr_assert_eq(add(DRIVE_FLOPPY, file(2949121, NULL), false), -EINVAL);
    cr_assert(strstr(err, "larger") && strstr(err, "--disk"), "%s", err);
    cr_assert_eq(add(DRIVE_FLOPPY, file(0, NULL), false), -EINVAL);
    cr_assert(strstr(err, "empty"), "%s", err);
}

Test(drive, disc_and_disk_sizes)
{
    cr_assert_eq(add(DRIVE_CDROM, file(2048 * 3 + 1, NULL), false), 0, "%s", err);
    cr_assert_eq(set.drive[0].dev->size, 2048 * 4);
    cr_assert_eq(add(DRIVE_DISK, file(1000, NULL), false), 0, "%s", err);
    cr_assert_eq(set.drive[1].dev->size, 1024);
}

Test(drive, usual_drives)
{
    cr_assert_eq(drives_add_usual(&set, NULL, 0, false, err, sizeof(err)), 0);
    cr_assert_eq(set.count, 2);
    cr_assert_eq(drives_find(&set, "cdrom0")->bus, DRIVE_BUS_IDE);
    cr_assert_eq(drives_find(&set, "floppy0")->floppy, FLOPPY_1M44);
    cr_assert_null(drives_find(&set, "cdrom0")->dev->image);
    cr_assert_null(drives_find(&set, "floppy1"));
}

Test(drive, usual_drives_or_not)
{
    struct drive_options o[2];

    cr_assert_eq(drive_parse(&o[0], DRIVE_CDROM, "none", err, sizeof(err)), 0);
    cr_assert_eq(drive_parse(&o[1], DRIVE_FLOPPY, "", err, sizeof(err)), 0);
    for (unsigned i = 0; i < 2; i++)
        cr_assert_eq(drives_add(&set, &o[i], DRIVE_BUS_IDE, false, err, sizeof(err)), 0);
    cr_assert_eq(drives_add_usual(&set, o, 2, false, err, sizeof(err)), 0);
    cr_assert_eq(set.count, 1, "one floppy drive");
    cr_assert_eq(drive_parse(&o[0], DRIVE_FLOPPY, "none,readonly", err, sizeof(err)), -EINVAL);
    cr_assert_eq(drive_parse(&o[0], DRIVE_DISK, "none", err, sizeof(err)), 0, "a file");
    cr_assert(!o[0].absent);
}

/* Four IDE disks leave a CD drive no place. */
Test(drive, usual_cd_needs_a_place)
{
    for (unsigned i = 0; i < 4; i++)
        cr_assert_eq(add(DRIVE_DISK, file(512, NULL), false), 0);
    cr_assert_eq(drives_add_usual(&set, NULL, 0, false, err, sizeof(err)), 0);
    cr_assert_null(drives_find(&set, "cdrom0"));
    cr_assert_not_null(drives_find(&set, "floppy0"));
}

static unsigned asked;

static void on_eject_request(void *opaque)
{
    asked++;
}

Test(drive, media_come_and_go)
{
    const struct drive *cd, *floppy;

    drives_add_usual(&set, NULL, 0, false, err, sizeof(err));
    cd = drives_find(&set, "cdrom0");
    floppy = drives_find(&set, "floppy0");
    cr_assert_eq(drive_eject(cd, false, err, sizeof(err)), 0, "an empty drive");
    cr_assert_eq(drive_change(cd, file(2048, NULL), false, false, err, sizeof(err)), 0);
    cr_assert(cd->dev->read_only && cd->dev->size == 2048);
    cd->dev->locked = true;
    cd->dev->eject_requested = on_eject_request;
    cr_assert_eq(drive_eject(cd, false, err, sizeof(err)), -EBUSY);
    cr_assert_eq(asked, 1);
    cr_assert_eq(drive_change(cd, "/nonexistent", true, true, err, sizeof(err)), -ENOENT);
    cr_assert_eq(cd->dev->size, 2048, "the old medium is still there");
    cr_assert_eq(drive_eject(cd, true, err, sizeof(err)), 0);
    cr_assert_null(cd->dev->image);

    cr_assert_eq(drive_change(floppy, file(512, NULL), true, false, err, sizeof(err)), 0);
    cr_assert(floppy->dev->read_only && floppy->dev->size == 1474560);
    cr_assert_eq(drive_change(floppy, file(2949120, NULL), true, false, err, sizeof(err)), -EINVAL);
    cr_assert(strstr(err, "2880 KiB") && strstr(err, "1.44M drive"), "%s", err);
    cr_assert_eq(floppy->dev->size, 1474560);
    cr_assert_eq(add(DRIVE_DISK, file(512, NULL), false), 0);
    cr_assert_eq(drive_eject(drives_find(&set, "disk0"), true, err, sizeof(err)), -EINVAL);
}
