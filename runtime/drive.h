/*
 * The drives of a machine as the user asks for them: --disk and its kin, opened before the machine
 * is built, so that what is wrong with a file is said before anything happens.
 */
#ifndef RINGSHIFT_RUNTIME_DRIVE_H
#define RINGSHIFT_RUNTIME_DRIVE_H

#include <stdbool.h>
#include <stddef.h>

#include "devices/block.h"
#include "devices/fdc.h"

#define DRIVES_MAX 32

enum drive_kind { DRIVE_DISK, DRIVE_CDROM, DRIVE_FLOPPY };

/* What a drive is attached to. */
enum drive_bus { DRIVE_BUS_DEFAULT, DRIVE_BUS_IDE, DRIVE_BUS_AHCI, DRIVE_BUS_VIRTIO };

struct drive_options {
    enum drive_kind kind;
    enum drive_bus bus;
    enum block_format_id format;
    bool read_only;
    bool absent;     /* --cdrom none, --floppy none: no drive, not even the one that PCs have */
    char path[4096]; /* "": an empty drive */
};

struct drive {
    enum drive_kind kind;
    enum drive_bus bus; /* no longer DRIVE_BUS_DEFAULT */
    struct block_device *dev;
    bool snapshot;                 /* for the media that come later, too */
    enum floppy_drive_type floppy; /* FLOPPY_NONE unless it is a floppy drive */
};

/* In the order of the command line. */
struct drive_set {
    struct block_queue *queue;
    struct drive drive[DRIVES_MAX];
    unsigned count;
};

/* The argument of --disk, FILE[,if=ide|ahci|virtio][,format=raw|qcow2][,readonly], of --cdrom,
 * FILE[,if=ide|ahci], or of --floppy, FILE[,readonly]; of the last two, an empty FILE is an empty
 * drive and `none` is no drive; a comma in the file's name is written twice.  0, or -EINVAL with
 * one sentence in err. */
int drive_parse(struct drive_options *out, enum drive_kind kind, const char *text, char *err,
                size_t errlen);

/* 0 or negative errno with one sentence in err. */
int drives_init(struct drive_set *set, char *err, size_t errlen);
/* Opens an image and adds its drive; `bus` is what DRIVE_BUS_DEFAULT stands for.  0 or negative
 * errno with one sentence in err. */
int drives_add(struct drive_set *set, const struct drive_options *o, enum drive_bus bus,
               bool snapshot, char *err, size_t errlen);
/* Adds what every PC has unless the list o of n options says otherwise: an empty CD drive, if the
 * disks leave it a place on the IDE channels, and an empty floppy drive.  As drives_add(). */
int drives_add_usual(struct drive_set *set, const struct drive_options *o, unsigned n,
                     bool snapshot, char *err, size_t errlen);

/*
 * Media, while the machine runs (machine lock held).  What is written to the old medium is on it
 * before these return.
 */
/* The drive of this name ("cdrom0", "floppy0"), or NULL. */
const struct drive *drives_find(const struct drive_set *set, const char *name);
/* Takes the medium out; an empty drive stays so.  -EBUSY if the guest has locked the drive, which
 * is told of the wish then (force takes it out all the same); -EINVAL if it is no removable drive.
 * One sentence in err. */
int drive_eject(const struct drive *d, bool force, char *err, size_t errlen);
/* Puts in the image at path; what was in the drive is ejected as drive_eject() does.  On failure
 * the old medium is still there. */
int drive_change(const struct drive *d, const char *path, bool read_only, bool force, char *err,
                 size_t errlen);

/* Closes all images, after the machine is gone.  0, or a negative errno with one sentence in err
 * if something could not be written. */
int drives_destroy(struct drive_set *set, char *err, size_t errlen);

#endif
