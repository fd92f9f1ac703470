/*
 * fw_cfg: selector, data and DMA descriptors anywhere in a small memory.  What is offered can be
 * read and never changes, and DMA never leaves memory.
 */
#include "devices/fw_cfg.h"
#include "io_script.h"
#include "mmu/ram.h"

#define RAM_SIZE (2u << 20)
#define BLOB     5000u

enum { PORTS, DMA };
enum { WRITE_RAM, DESCRIPTOR, RESET, EVENTS };

static struct script script;
static struct guest_ram ram;
static struct fw_cfg cfg;
static uint8_t blob[BLOB];
static unsigned selections;

static void on_select(void *opaque)
{
    selections++;
}

static void write_descriptor(uint64_t at, uint32_t control, uint32_t length, uint64_t address)
{
    uint32_t words[4] = {__builtin_bswap32(control), __builtin_bswap32(length),
                         __builtin_bswap32((uint32_t)(address >> 32)),
                         __builtin_bswap32((uint32_t)address)};

    if (at <= RAM_SIZE - sizeof(words))
        ram_write(&ram, at, words, sizeof(words));
}

static void event(unsigned what, uint32_t arg, uint64_t value)
{
    switch (what) {
    case WRITE_RAM:
        ram_write(&ram, arg % (RAM_SIZE - 8), &value, 8);
        break;
    case DESCRIPTOR: /* at 0x1000, and started: the select key, command and length in value */
        write_descriptor(0x1000, (uint32_t)value, (uint32_t)(value >> 32), arg);
        script_write(&script, DMA, 4, 4, __builtin_bswap32(0x1000));
        break;
    default:
        fw_cfg_reset(&cfg);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t byte;

    if (!cfg.ram) {
        for (unsigned i = 0; i < BLOB; i++)
            blob[i] = (uint8_t)(i * 7 + i / 256);
        if (ram_create(&ram, RAM_SIZE) || fw_cfg_init(&cfg, &ram) ||
            fw_cfg_set_file(&cfg, "etc/blob", blob, BLOB) ||
            fw_cfg_set_file(&cfg, "etc/empty", blob, 0) ||
            fw_cfg_on_select(&cfg, "etc/blob", on_select, NULL) ||
            fw_cfg_set_borrowed(&cfg, FW_CFG_KERNEL_DATA, blob, BLOB) ||
            fw_cfg_set_u16(&cfg, FW_CFG_NB_CPUS, 1) || fw_cfg_set_u32(&cfg, FW_CFG_ID, 3))
            abort();
    }
    script_init(&script, EVENTS, event);
    fw_cfg_reset(&cfg);
    memset(ram.base, 0, RAM_SIZE);
    script_region(&script, &fw_cfg_io_ops, &cfg, FW_CFG_PORTS);
    script_region(&script, &fw_cfg_dma_ops, &cfg, FW_CFG_DMA_LEN);
    script_run(&script, data, size > 1024 * SCRIPT_COMMAND ? 1024 * SCRIPT_COMMAND : size);
    /* All of the file, by DMA and by port. */
    fw_cfg_reset(&cfg);
    write_descriptor(0x1000, FW_CFG_FILE_FIRST << 16 | 8 | 2, BLOB + 8, 0x4000);
    script_write(&script, DMA, 0, 4, 0);
    script_write(&script, DMA, 4, 4, __builtin_bswap32(0x1000));
    FUZZ_CHECK(!memcmp(ram.base + 0x4000, blob, BLOB), "the file has changed");
    for (unsigned i = BLOB; i < BLOB + 8; i++)
        FUZZ_CHECK(!ram.base[0x4000 + i], "there is something behind the file");
    script_write(&script, PORTS, 0, 2, FW_CFG_FILE_FIRST);
    for (unsigned i = 0; i < 64; i++) {
        byte = (uint8_t)script_read(&script, PORTS, 1, 1);
        FUZZ_CHECK(byte == blob[i], "byte %u of the file is %#x", i, byte);
    }
    return 0;
}

SCRIPT_SEEDS(
    /* Signature, ID, directory, a file, by ports. */
    "w0+0:2=0 r0+1:1 r0+1:1 r0+1:1 r0+1:1 w0+0:2=1 r0+1:4 w0+0:2=19 r0+1:1 r0+1:1 w0+0:2=20 r0+1:1 "
    "w0+0:2=ffff r0+1:1 w0+0:1=20 w0+1:1=0 r0+0:2 r1+0:8 r1+4:4",
    /* DMA: select and read, skip, write (refused), to where there is no memory, onto itself. */
    "e1+8000=1000020000a e1+8000=1000000004 e1+8000=10000000002 e1+8000=10000000010 "
    "e1+fffff000=1000020000a e1+1ffff0=1000020000a e1+1000=1000020000a e1+1008=10000000002 "
    "e1+0=ffffffff0020000a e1+8000=11000000002 e1+2000=ffffffff00000004 e1+2000=100000000002",
    /* Descriptors at the end of memory, above it, and half a register. */
    "e0+1ffff0=a002000 w1+0:4=0 w1+4:4=f0ff1f00 w1+4:4=f8ff1f00 w1+0:4=ffffffff w1+4:4=ffffffff "
    "w1+0:8=10000000000000 w1+2:2=ffff w1+4:1=1 w1+0:4=1000000 w1+4:4=100000 e2+0=0 w1+4:4=100000")
