/*
 * What the IDE and AHCI harnesses share: a rig with a disk and a CD drive, whose medium changes and
 * whose images fail when the input says so.
 */
#ifndef RINGSHIFT_FUZZ_ATA_DRIVES_H
#define RINGSHIFT_FUZZ_ATA_DRIVES_H

#include <errno.h>
#include <stdlib.h>

#include "../support/storage_rig.h"

#define DISK_SIZE (2u << 20)
#define CD_SIZE   (2048u * 400)

static struct rig rig;
static struct mem_image disk_image, cd_image, other_image;
static struct block_device *disk, *cd;

static void create_drives(void)
{
    if (rig_init(&rig))
        abort();
    mem_image_init(&disk_image, DISK_SIZE);
    mem_image_init(&cd_image, CD_SIZE);
    mem_image_init(&other_image, 2048);
    cd_image.image.read_only = other_image.image.read_only = true;
    disk = rig_drive(&rig, &disk_image, false);
    cd = rig_drive(&rig, &cd_image, true);
}

static void medium(unsigned which)
{
    static struct mem_image *const images[] = {NULL, &cd_image, &other_image};
    struct mem_image *m = images[which % 3];

    block_device_set_medium(cd, m ? &m->image : NULL);
}

static void fail_images(unsigned which)
{
    disk_image.fail = which & 1 ? -EIO : 0;
    cd_image.fail = which & 2 ? -EIO : 0;
}

#endif
