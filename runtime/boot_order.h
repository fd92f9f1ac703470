/*
 * What firmware is told about drives: the boot order as OpenFirmware device paths (the fw_cfg file
 * "bootorder", which SeaBIOS and OVMF follow) and as CMOS bytes (which SeaBIOS falls back on), and
 * the CMOS bytes for drive types and geometries.
 */
#ifndef RINGSHIFT_RUNTIME_BOOT_ORDER_H
#define RINGSHIFT_RUNTIME_BOOT_ORDER_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/drive.h"
#include "runtime/storage.h"

struct rtc;

#define BOOT_ORDER_MAX     (DRIVES_MAX * 80)
#define BOOT_ORDER_DEFAULT "cad"

/*
 * Writes the paths of all drives, a line each, to `out`: those of the kind of the first letter of
 * `letters` (a floppy, c disk, d CD), then of the second...; drives of one kind in the order of the
 * command line.  virtio_slot[i] is the PCI slot of the i-th virtio disk.  Returns the length.
 */
size_t boot_order_paths(const char *letters, const struct storage *s,
                        const uint8_t virtio_slot[DRIVES_MAX], char out[BOOT_ORDER_MAX]);

/* Fills the bytes about drives and boot order. */
void boot_order_cmos(const char *letters, const struct storage *s, bool mouse, struct rtc *rtc);

#endif
