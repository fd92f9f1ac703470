/*
 * The flash: commands in any order, at any address, and a file behind it that fails at times.  What
 * is kept is what can be read, programming only clears bits, and after the command for it the
 * contents are memory again.
 */
#include "devices/pflash.h"
#include "io_script.h"
#include "mmu/memory_map.h"
#include "mmu/ram.h"

#define SIZE  (4 * PFLASH_BLOCK)
#define FLASH 0xffc00000ull

enum { FAIL, RESET, EVENTS };

static struct script script;
static struct guest_ram ram;
static struct io_bus bus;
static struct pflash flash;
static uint8_t kept[SIZE];
static bool failing;

static bool store(void *opaque, uint32_t at, const uint8_t *data, uint32_t len)
{
    bool erased = len == PFLASH_BLOCK;

    FUZZ_CHECK(len <= SIZE && at <= SIZE - len, "stores %u bytes at %#x", len, at);
    for (uint32_t i = 0; i < len; i++)
        FUZZ_CHECK(erased || !(data[i] & ~kept[at + i]), "programming sets bits at %#x", at + i);
    if (failing)
        return false;
    memcpy(kept + at, data, len);
    return true;
}

static void event(unsigned what, uint32_t arg, uint64_t value)
{
    if (what == FAIL)
        failing = value & 1;
    else
        pflash_reset(&flash);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!flash.ram &&
        (ram_create(&ram, 2u << 20) || pflash_init(&flash, &ram, &bus, FLASH, SIZE, store, NULL)))
        abort();
    script_init(&script, EVENTS, event);
    failing = false;
    pflash_reset(&flash);
    flash.status = 0x80;
    for (unsigned i = 0; i < SIZE; i++)
        kept[i] = flash.data[i] = i % 3 ? 0xff : (uint8_t)i;
    script_region(&script, &pflash_io_ops, &flash, SIZE);
    script_run(&script, data, size > 1024 * SCRIPT_COMMAND ? 1024 * SCRIPT_COMMAND : size);
    FUZZ_CHECK(!memcmp(flash.data, kept, SIZE), "the contents are not what was kept");
    /* A driver that starts over: clear status, array; programs and reads a byte. */
    failing = false;
    pflash_reset(&flash);
    FUZZ_CHECK(ram_page(&ram, FLASH) == RAM_PAGE_ROM, "no memory after a reset");
    script_write(&script, 0, 0, 1, 0x50);
    script_write(&script, 0, 7, 1, 0x20);
    script_write(&script, 0, 7, 1, 0xd0);
    script_write(&script, 0, 7, 1, 0x40);
    script_write(&script, 0, 7, 1, 0x5a);
    FUZZ_CHECK(script_read(&script, 0, 7, 1) == 0x80, "programming fails");
    script_write(&script, 0, 0, 1, 0xff);
    FUZZ_CHECK(ram_page(&ram, FLASH) == RAM_PAGE_ROM && flash.data[7] == 0x5a && kept[7] == 0x5a,
               "the byte is not there");
    return 0;
}

SCRIPT_SEEDS(
    /* Probe, status, identification, query. */
    "w0+100:1=50 r0+100:1 w0+100:1=70 r0+100:1 w0+0:1=90 r0+0:1 r0+1:1 w0+55:1=98 r0+10:1 r0+27:1 "
    "r0+2d:1 "
    "w0+0:1=ff r0+100:1 w0+0:1=60 w0+0:1=d0 r0+0:1 w0+0:1=60 w0+0:1=1 w0+0:1=b0 w0+0:1=ff",
    /* Program, erase, with and without confirmation, and failures. */
    "w0+100:1=10 w0+100:1=f r0+0:1 w0+101:1=40 w0+101:1=ff w0+0:1=ff w0+1fff:1=20 w0+1fff:1=d0 "
    "r0+0:1 "
    "w0+123:1=28 w0+123:1=ff e0+0=1 w0+10:1=10 w0+10:1=0 r0+0:1 w0+10:1=20 w0+10:1=d0 r0+0:1 "
    "w0+0:1=50 e0+0=0",
    /* Buffered: three bytes, too many, two buffers, at the end; and a reset in between. */
    "w0+1040:1=e8 r0+0:1 w0+1040:1=2 w0+1041:1=1 w0+1042:1=2 w0+1043:1=3 w0+1040:1=d0 r0+0:1 "
    "w0+0:1=ff "
    "w0+1040:1=e8 w0+1040:1=40 w0+0:1=50 w0+103f:1=e8 w0+103f:1=1 w0+103f:1=0 w0+1040:1=0 "
    "w0+0:1=50 "
    "w0+3fff:1=e8 w0+3fff:1=3f w0+3fff:1=0 e1+0=0 w0+3fc0:1=e8 w0+3fff:1=0 w0+3fff:1=0 "
    "w0+3fff:1=d0 r0+0:1")
