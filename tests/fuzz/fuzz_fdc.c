/*
 * The floppy controller and the ISA DMA controllers under a hostile driver.  Whatever happened,
 * after a reset a sector can be read.
 */
#include "../support/storage_rig.h"

#include <errno.h>

#include "devices/fdc.h"
#include "fuzz.h"
#include "script.h"

enum {
    WRITE_PORT,
    READ_PORT,
    WRITE_DMA,
    READ_DMA,
    PROGRAM,
    SEND,
    RESULT,
    DRAIN,
    MEDIUM,
    FAIL,
    KINDS
};

static struct rig rig;
static struct i8237 dma;
static struct fdc fdc;
static struct mem_image image, image720, fixed;
static struct block_device *drive;

static void create(void)
{
    if (rig_init(&rig))
        abort();
    mem_image_init(&image, 2880 * 512);
    mem_image_init(&image720, 1440 * 512);
    mem_image_init(&fixed, 2880 * 512);
    fixed.image.read_only = true;
    drive = rig_drive(&rig, &image, true);
    i8237_init(&dma, &rig.ram);
    fdc_init(&fdc, (struct irq_line){0}, &dma);
    fdc_attach(&fdc, 0, drive, FLOPPY_1M44);
}

static void out(unsigned port, uint8_t value)
{
    fdc_ops.write(&fdc, port, 1, value);
}

static uint8_t in(unsigned port)
{
    return (uint8_t)fdc_ops.read(&fdc, port, 1);
}

/* Channel 2. */
static void program(uint32_t address, uint16_t count, uint8_t mode)
{
    i8237_low_ops.write(&dma, 0x0a, 1, 6);
    i8237_low_ops.write(&dma, 0x0c, 1, 0);
    i8237_low_ops.write(&dma, 0x0b, 1, (uint8_t)((mode & 0xfc) | 2));
    for (unsigned i = 0; i < 2; i++)
        i8237_low_ops.write(&dma, 4, 1, (uint8_t)(address >> 8 * i));
    i8237_page_ops.write(&dma, 1, 1, (uint8_t)(address >> 16));
    for (unsigned i = 0; i < 2; i++)
        i8237_low_ops.write(&dma, 5, 1, (uint8_t)(count >> 8 * i));
    i8237_low_ops.write(&dma, 0x0a, 1, 2);
}

static void medium(unsigned which)
{
    static struct mem_image *const images[] = {NULL, &image, &image720, &fixed};
    struct mem_image *m = images[which % 4];

    block_device_set_medium(drive, m ? &m->image : NULL);
}

static void reset(void)
{
    block_drain(drive);
    image.fail = fixed.fail = image720.fail = 0;
    i8237_reset(&dma);
    fdc_reset(&fdc);
}

static const struct io_ops *dma_ops(unsigned which, unsigned *ports)
{
    *ports = which % 3 == 2 ? I8237_PORTS_HIGH : I8237_PORTS_LOW;
    return which % 3 == 0 ? &i8237_low_ops : which % 3 == 1 ? &i8237_page_ops : &i8237_high_ops;
}

static void command(const uint8_t *c)
{
    uint16_t offset = script_offset(c);
    uint64_t value = script_value(c);
    const struct io_ops *ops;
    unsigned ports;

    switch (c[0] % KINDS) {
    case WRITE_PORT:
        if (offset % 7 == 6)
            fdc_dir_ops.write(&fdc, 0, 1, value & 0xff);
        else
            out(offset % 7, (uint8_t)value);
        break;
    case READ_PORT:
        if (offset % 7 == 6)
            fdc_dir_ops.read(&fdc, 0, 1);
        else
            for (unsigned i = 0; i <= value % 600; i++)
                in(offset % 7);
        break;
    case WRITE_DMA:
        ops = dma_ops(c[1], &ports);
        ops->write(&dma, offset % ports, 1, value & 0xff);
        break;
    case READ_DMA:
        ops = dma_ops(c[1], &ports);
        ops->read(&dma, offset % ports, 1);
        break;
    case PROGRAM:
        program(script_address(c), offset, c[1]);
        break;
    case SEND:
        for (unsigned i = 0; i < 1 + c[1] % 12u; i++)
            out(5, c[4 + i]);
        break;
    case RESULT:
        for (unsigned i = 0; i < 1 + c[1] % 12u; i++)
            in(5);
        break;
    case MEDIUM:
        medium(c[1]);
        break;
    case FAIL:
        image.fail = image720.fail = fixed.fail = c[1] & 1 ? -EIO : 0;
        break;
    default:
        block_drain(drive);
        break;
    }
}

static void send(const uint8_t *bytes, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        out(5, bytes[i]);
}

/* As a BIOS does it. */
static void read_sector(void)
{
    static const uint8_t recalibrate[] = {7, 0}, read[] = {0x46, 0, 0, 0, 3, 2, 3, 0x1b, 0xff};
    static const uint8_t sense[] = {8};

    medium(1);
    out(2, 0x08);
    out(2, 0x1c);
    for (unsigned i = 0; i < 4; i++) {
        send(sense, 1);
        in(5), in(5);
    }
    fdc_dir_ops.write(&fdc, 0, 1, 0);
    send(recalibrate, 2);
    send(sense, 1);
    in(5), in(5);
    program(0x8000, 511, 0x44);
    send(read, sizeof(read));
    block_drain(drive);
    if ((in(4) & 0xd0) != 0xd0 || (in(5) & 0xc0) || in(5) || in(5))
        abort(); /* the controller is stuck, or the data cannot be read */
    if (memcmp(rig_mem(&rig, 0x8000), image.data + 2 * 512, 512))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static bool created;

    if (!created) {
        create();
        created = true;
    }
    reset();
    medium(1);
    for (size_t at = 0; at + COMMAND <= size; at += COMMAND)
        command(data + at);
    reset();
    read_sector();
    return 0;
}

/* -- A driver that behaves ----------------------------------------------------------------------
 */

static void add_send(struct script *s, unsigned n, const uint8_t *bytes)
{
    uint64_t value = 0;
    uint32_t rest = 0;

    for (unsigned i = 0; i < n && i < 8; i++)
        value |= (uint64_t)bytes[i] << 8 * i;
    for (unsigned i = 8; i < n; i++)
        rest |= (uint32_t)bytes[i] << 8 * (i - 8);
    add(s, SEND, n - 1, 0, value, rest);
}

size_t fuzz_seed(unsigned index, uint8_t *out, size_t max)
{
    static const struct {
        uint8_t len, bytes[9];
    } commands[] = {
        {9, {0xe6, 0, 0, 0, 1, 2, 18, 0x1b, 0xff}}, /* READ */
        {9, {0xc5, 0, 0, 0, 1, 2, 18, 0x1b, 0xff}}, /* WRITE */
        {9, {0x42, 4, 0, 1, 1, 2, 18, 0x1b, 0xff}}, /* READ TRACK */
        {9, {0xd6, 0, 0, 0, 1, 2, 18, 0x1b, 0xff}}, /* VERIFY */
        {9, {0xcc, 0, 0, 0, 1, 2, 18, 0x1b, 0xff}}, /* READ DELETED */
        {6, {0x4d, 0, 2, 18, 0x50, 0xf6}},          /* FORMAT */
        {2, {0x4a, 0}},                             /* READ ID */
        {3, {0x0f, 0, 40}},                         /* SEEK */
        {3, {0xcf, 0, 3}},                          /* relative */
        {2, {0x04, 0}},
        {1, {0x0e}},
        {1, {0x10}},
        {4, {0x13, 0, 0x57, 0}},
        {1, {0x94}},
        {2, {0x12, 0x80}},
        {3, {0x03, 0xaf, 0x03}}, /* SPECIFY, without DMA: READ follows */
    };
    static const uint8_t sense[] = {8};
    const unsigned count = sizeof(commands) / sizeof(commands[0]);
    struct script s = {out, 0, max};

    if (index >= count)
        return 0;
    add(&s, WRITE_PORT, 0, 2, 0x1c, 0);
    add(&s, WRITE_PORT, 0, 6, 0, 0);
    for (unsigned i = 0; i < 4; i++) {
        add_send(&s, 1, sense);
        add(&s, RESULT, 1, 0, 0, 0);
    }
    add(&s, PROGRAM, index == 1 || index == 5 ? 0x48 : 0x44, 0x11ff, 0, 0x20000);
    add_send(&s, commands[index].len, commands[index].bytes);
    add(&s, DRAIN, 0, 0, 0, 0);
    add(&s, RESULT, 6, 0, 0, 0);
    add_send(&s, commands[index % 6].len, commands[index % 6].bytes);
    add(&s, DRAIN, 0, 0, 0, 0);
    add(&s, READ_PORT, 0, 5, 520, 0);
    add(&s, RESULT, 6, 0, 0, 0);
    add_send(&s, 1, sense);
    add(&s, RESULT, 1, 0, 0, 0);
    add(&s, MEDIUM, index, 0, 0, 0);
    return s.len;
}
