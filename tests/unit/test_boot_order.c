/* What firmware is told about drives: device paths in boot order, CMOS bytes. */
#include "dev_fixture.h"

#include <string.h>

#include "devices/rtc.h"
#include "runtime/boot_order.h"

static struct block_device disk[2], cd, floppy, virtual;
static struct drive_set set;
static struct storage s;

static void add(enum drive_kind kind, enum drive_bus bus, struct block_device *dev)
{
    set.drive[set.count++] = (struct drive){.kind = kind, .bus = bus, .dev = dev};
}

static void setup(void)
{
    add(DRIVE_DISK, DRIVE_BUS_VIRTIO, &virtual);
    add(DRIVE_CDROM, DRIVE_BUS_IDE, &cd);
    add(DRIVE_DISK, DRIVE_BUS_IDE, &disk[0]);
    add(DRIVE_FLOPPY, DRIVE_BUS_DEFAULT, &floppy);
    s.drives = &set;
    struct ata_device *d = &s.ide.channel[0].drive[0].dev;
    d->kind = ATA_DISK;
    d->block = &disk[0];
    d->cylinders = 0x1234;
    d->default_heads = 16;
    d->default_spt = 63;
    s.ide.channel[1].drive[0].dev.kind = ATA_CDROM;
    s.ide.channel[1].drive[0].dev.block = &cd;
    s.fdc.drive[0].block = &floppy;
    s.fdc.drive[0].type = FLOPPY_1M44;
}

Test(boot_order, paths, .init = setup)
{
    static char out[BOOT_ORDER_MAX];
    const uint8_t slots[DRIVES_MAX] = {0x1f};

    cr_assert_gt(boot_order_paths("dca", &s, slots, out), 0);
    cr_assert_str_eq(out, "/pci@i0cf8/ide@1,1/drive@1/disk@0\n"
                          "/pci@i0cf8/scsi@1f/disk@0,0\n"
                          "/pci@i0cf8/ide@1,1/drive@0/disk@0\n"
                          "/pci@i0cf8/isa@1/fdc@03f0/floppy@0\n");
    boot_order_paths("n", &s, slots, out);
    cr_assert_str_eq(out, "");
    s.drives = NULL;
    cr_assert_eq(boot_order_paths(BOOT_ORDER_DEFAULT, &s, slots, out), 0);
}

static int64_t wall_clock(void *opaque)
{
    return 0;
}

Test(boot_order, cmos, .init = setup)
{
    static struct fake_clock clk;
    static struct rtc rtc;
    unsigned sum = 0;

    fake_clock_init(&clk);
    rtc_init(&rtc, (struct irq_line){0}, &clk.timers, wall_clock, NULL, 64u << 20, 0);
    boot_order_cmos("dc", &s, true, &rtc);
    cr_assert_eq(rtc.cmos[0x10], 0x40, "one 1.44M drive");
    cr_assert_eq(rtc.cmos[0x12], 0xf0);
    cr_assert_eq(rtc.cmos[0x19], 47);
    cr_assert_eq(rtc.cmos[0x1b] | rtc.cmos[0x1c] << 8, 0x1234);
    cr_assert_eq(rtc.cmos[0x14], 0x07);
    cr_assert_eq(rtc.cmos[0x3d], 0x23, "CD, then disk");
    cr_assert_eq(rtc.cmos[0x38], 0x01);
    for (unsigned i = 0x10; i <= 0x2d; i++)
        sum += rtc.cmos[i];
    cr_assert_eq((unsigned)(rtc.cmos[0x2e] << 8 | rtc.cmos[0x2f]), sum, "the checksum follows");
    rtc_set_nvram(&rtc, 0x0b, 0xff);
    rtc_set_nvram(&rtc, 0x80, 0xff);
    cr_assert_neq(rtc.cmos[0x0b], 0xff, "clock registers are not RAM");
}
