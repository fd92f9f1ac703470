/*
 * The AHCI controller: see ahci.h.  Section numbers are those of AHCI 1.3.1.
 *
 * Everything in guest memory (command headers, FISes, PRD entries) is copied once and then only
 * the copy is looked at.  A PRD table has at most 65535 entries and is walked once per command, so
 * it cannot keep us for ever.
 */
#include "devices/ahci.h"

#include <linux/pci_regs.h>
#include <string.h>

#include "devices/ata_commands.h"

/* Generic host control (3.1). */
enum {
    HBA_CAP = 0x00,
    HBA_GHC = 0x04,
    HBA_IS = 0x08,
    HBA_PI = 0x0c,
    HBA_VS = 0x10,
    HBA_CAP2 = 0x24,
};
#define GHC_HR 0x00000001u
#define GHC_IE 0x00000002u
#define GHC_AE 0x80000000u
/* 64-bit addresses, NCQ, command list override, AHCI only, 3 Gb/s, 32 slots, 6 ports. */
#define CAP_VALUE                                                                                  \
    (1u << 31 | 1u << 30 | 1u << 24 | 1u << 18 | 2u << 20 | (AHCI_SLOTS - 1) << 8 |                \
     (AHCI_PORTS - 1))
#define VERSION 0x00010300u

/* Port registers (3.3). */
enum {
    PX_CLB = 0x00,
    PX_CLBU = 0x04,
    PX_FB = 0x08,
    PX_FBU = 0x0c,
    PX_IS = 0x10,
    PX_IE = 0x14,
    PX_CMD = 0x18,
    PX_TFD = 0x20,
    PX_SIG = 0x24,
    PX_SSTS = 0x28,
    PX_SCTL = 0x2c,
    PX_SERR = 0x30,
    PX_SACT = 0x34,
    PX_CI = 0x38,
};
#define PORT_BASE 0x100u
#define PORT_SIZE 0x80u

#define IS_DHRS 0x00000001u /* D2H register FIS */
#define IS_PSS  0x00000002u /* PIO setup FIS */
#define IS_DSS  0x00000004u
#define IS_SDBS 0x00000008u /* set device bits FIS */
#define IS_DPS  0x00000020u /* descriptor processed */
#define IS_PCS  0x00000040u /* port connect change: SERR.DIAG.X */
#define IS_PRCS 0x00400000u /* PhyRdy change: SERR.DIAG.N */
#define IS_OFS  0x01000000u /* overflow of the PRD table */
#define IS_HBFS 0x20000000u /* host bus fatal error */
#define IS_TFES 0x40000000u /* task file error */
#define IS_W1C  (0xfdc000afu)
#define IE_MASK 0xfdc000ffu

#define CMD_ST       0x00000001u
#define CMD_SUD      0x00000002u
#define CMD_POD      0x00000004u
#define CMD_CLO      0x00000008u
#define CMD_FRE      0x00000010u
#define CMD_FR       0x00004000u
#define CMD_CR       0x00008000u
#define CMD_ATAPI    0x01000000u
#define CMD_WRITABLE (CMD_ST | CMD_FRE | CMD_ATAPI | 0x02000000u)
#define CMD_ICC      0xf0000000u

#define SERR_X 0x04000000u /* exchanged: COMINIT was received */

#define SSTS_UP 0x00000123u /* interface active, generation 2, device present */

/* Frame information structures (SATA 3.0, 10.3) and where they go in the receive area (4.2.1). */
enum {
    FIS_H2D = 0x27,
    FIS_D2H = 0x34,
    FIS_PIO_SETUP = 0x5f,
    FIS_SET_BITS = 0xa1,
};
enum { AREA_PIO_SETUP = 0x20, AREA_D2H = 0x40, AREA_SET_BITS = 0x58 };
enum { FIS_INTERRUPT = 0x40 };

#define HEADER_SIZE 32u
#define TABLE_ACMD  0x40u
#define TABLE_PRDT  0x80u

static bool present(const struct ahci_port *p)
{
    return p->dev.kind != ATA_NONE;
}

/* -- Interrupts -------------------------------------------------------------------------------- */

static void update_irq(struct ahci *h)
{
    bool level;

    for (unsigned i = 0; i < AHCI_PORTS; i++)
        if (h->port[i].is & h->port[i].ie)
            h->is |= 1u << i;
    level = (h->ghc & GHC_IE) && h->is;
    if (!pci_msi_enabled(&h->pci)) {
        h->msi_level = false;
        pci_set_irq(&h->pci, level);
        return;
    }
    pci_set_irq(&h->pci, false);
    if (level && !h->msi_level)
        pci_notify(&h->pci, 0);
    h->msi_level = level;
}

static void port_event(struct ahci_port *p, uint32_t bits)
{
    struct ahci *h = p->hba;
    bool was = p->is & p->ie;

    p->is |= bits;
    /* A message for every port that becomes pending, even while others are: the handler may have
     * read IS already. */
    if (!was && (p->is & p->ie))
        h->msi_level = false;
    update_irq(h);
}

/* -- FISes to the host --------------------------------------------------------------------------
 */

static void write_fis(struct ahci_port *p, unsigned at, const uint8_t *fis, unsigned len)
{
    if (p->cmd & CMD_FRE)
        (void)pci_dma_write(&p->hba->pci, p->fb + at, fis, len);
}

static void set_tfd(struct ahci_port *p, const struct ata_taskfile *tf)
{
    p->tfd = (uint32_t)tf->error << 8 | tf->status;
}

static void fill_registers(uint8_t *fis, const struct ata_taskfile *tf)
{
    fis[2] = tf->status;
    fis[3] = tf->error;
    for (unsigned i = 0; i < 3; i++) {
        fis[4 + i] = (uint8_t)(tf->lba >> 8 * i);
        fis[8 + i] = (uint8_t)(tf->lba >> (24 + 8 * i));
    }
    fis[7] = tf->device;
    fis[12] = (uint8_t)tf->count;
    fis[13] = (uint8_t)(tf->count >> 8);
}

static void send_d2h(struct ahci_port *p, const struct ata_taskfile *tf, bool interrupt)
{
    uint8_t fis[20] = {FIS_D2H, interrupt ? FIS_INTERRUPT : 0};

    fill_registers(fis, tf);
    set_tfd(p, tf);
    write_fis(p, AREA_D2H, fis, sizeof(fis));
    if (interrupt)
        port_event(p, IS_DHRS | (tf->status & ATA_SR_ERR ? IS_TFES : 0));
}

static void send_pio_setup(struct ahci_port *p, const struct ata_command *cmd, bool in,
                           uint32_t bytes)
{
    uint8_t fis[20] = {FIS_PIO_SETUP, (uint8_t)(in ? 0x20 | FIS_INTERRUPT : 0)};
    struct ata_taskfile tf = cmd->tf;

    tf.status = ATA_SR_DRDY | ATA_SR_DRQ;
    fill_registers(fis, &tf);
    fis[15] = ATA_SR_DRDY; /* status at the end of the data */
    fis[16] = (uint8_t)bytes;
    fis[17] = (uint8_t)(bytes >> 8);
    write_fis(p, AREA_PIO_SETUP, fis, sizeof(fis));
}

/* An NCQ command has ended. */
static void send_set_bits(struct ahci_port *p, const struct ata_command *cmd, uint32_t done)
{
    uint8_t fis[8] = {FIS_SET_BITS, FIS_INTERRUPT, cmd->tf.status & 0x77, cmd->tf.error};
    bool error = cmd->tf.status & ATA_SR_ERR;

    pci_put32(fis + 4, done);
    p->tfd = (p->tfd & 0x88) | (uint32_t)cmd->tf.error << 8 | (cmd->tf.status & 0x77);
    p->sact &= ~done;
    write_fis(p, AREA_SET_BITS, fis, sizeof(fis));
    port_event(p, IS_SDBS | (error ? IS_TFES : 0));
}

static struct ahci_slot *slot_of(struct ata_command *cmd)
{
    return (struct ahci_slot *)((char *)cmd - offsetof(struct ahci_slot, cmd));
}

/* -- Data ---------------------------------------------------------------------------------------
 */

static int next_prd(struct ahci_slot *s)
{
    uint8_t entry[16];

    if (s->prd_next >= s->prds)
        return -1;
    if (pci_dma_read(&s->port->hba->pci, s->table + TABLE_PRDT + 16ull * s->prd_next, entry,
                     sizeof(entry)))
        return -2;
    s->prd_next++;
    s->prd_addr = (pci_get32(entry) & ~1u) | (uint64_t)pci_get32(entry + 4) << 32;
    s->prd_left = (pci_get32(entry + 12) & 0x3fffff) + 1;
    if (s->prd_left & 1) /* the count is even, its bit 0 always 1 */
        s->prd_left++;
    return 0;
}

/* Moves cmd->buf.  0, or the PxIS bit that says why not. */
static uint32_t run_prds(struct ahci_slot *s)
{
    struct pci_function *f = &s->port->hba->pci;
    struct ata_command *cmd = &s->cmd;
    uint32_t pos = 0;

    while (pos < cmd->buf_len) {
        uint32_t n = cmd->buf_len - pos;
        int err;

        if (!s->prd_left) {
            err = next_prd(s);
            if (err)
                return err == -1 ? IS_OFS : IS_HBFS;
        }
        n = n < s->prd_left ? n : s->prd_left;
        err = cmd->phase == ATA_PHASE_IN ? pci_dma_write(f, s->prd_addr, cmd->buf + pos, n)
                                         : pci_dma_read(f, s->prd_addr, cmd->buf + pos, n);
        if (err)
            return IS_HBFS;
        pos += n;
        s->moved += n;
        s->prd_addr += n;
        s->prd_left -= n;
    }
    return 0;
}

static void slot_data(void *opaque, struct ata_command *cmd)
{
    struct ahci_port *p = opaque;
    struct ahci_slot *s = slot_of(cmd);
    uint32_t why;

    if (cmd->phase == ATA_PHASE_PACKET) {
        if (pci_dma_read(&p->hba->pci, s->table + TABLE_ACMD, cmd->packet, sizeof(cmd->packet))) {
            port_event(p, IS_HBFS);
            ata_fail(cmd, ATA_ER_ABRT);
            return;
        }
        ata_data_done(cmd);
        return;
    }
    if (!cmd->dma && cmd->tf.command != ATA_CMD_PACKET) {
        bool in = cmd->phase == ATA_PHASE_IN;

        send_pio_setup(p, cmd, in, cmd->buf_len < cmd->drq_bytes ? cmd->buf_len : cmd->drq_bytes);
        s->pio_in = in;
    }
    why = run_prds(s);
    if (why) {
        port_event(p, why);
        ata_fail(cmd, ATA_ER_ABRT);
    } else {
        ata_data_done(cmd);
    }
}

/* -- The end of commands -------------------------------------------------------------------------
 */

static void run_port(struct ahci_port *p);

static bool commands_in_flight(const struct ahci_port *p)
{
    for (unsigned i = 0; i < AHCI_SLOTS; i++)
        if (p->slot[i].cmd.busy)
            return true;
    return false;
}

/* After a reset: the drive shows what it is. */
static void post_signature(struct ahci_port *p)
{
    struct ata_taskfile tf;

    p->signature_due = false;
    ata_signature(&p->dev, &tf);
    p->sig = (uint32_t)tf.lba << 8 | (tf.count & 0xff);
    set_tfd(p, &tf);
    p->fis_due = true;
    if (p->cmd & CMD_FRE) {
        p->fis_due = false;
        send_d2h(p, &tf, false); /* no interrupt: nobody gave a command */
    }
}

static void settle(struct ahci_port *p)
{
    if (commands_in_flight(p))
        return;
    if (!(p->cmd & CMD_ST))
        p->cmd &= ~CMD_CR;
    if (p->signature_due && !p->srst)
        post_signature(p);
}

static void abort_all(struct ahci_port *p)
{
    for (unsigned i = 0; i < AHCI_SLOTS; i++) {
        p->slot[i].issued = false;
        ata_abort(&p->slot[i].cmd);
    }
}

static void write_prdbc(struct ahci_slot *s)
{
    uint8_t count[4];

    pci_put32(count, s->moved);
    (void)pci_dma_write(&s->port->hba->pci, s->header + 4, count, sizeof(count));
}

static void slot_complete(void *opaque, struct ata_command *cmd)
{
    struct ahci_port *p = opaque;
    struct ahci_slot *s = slot_of(cmd);
    uint32_t bit = 1u << (s - p->slot);
    bool error = cmd->tf.status & ATA_SR_ERR;

    s->issued = false;
    if (cmd->aborted) {
        settle(p);
        run_port(p);
        return;
    }
    if (!cmd->queued)
        write_prdbc(s);
    if (error)
        p->stopped = true;
    if (cmd->queued) {
        if (error) /* the drive gives up on all queued commands (SATA 3.0, 13.6.3.3) */
            abort_all(p);
        send_set_bits(p, cmd, error ? 0 : bit);
    } else if (error) {
        send_d2h(p, &cmd->tf, true);
    } else {
        p->ci &= ~bit;
        if (s->pio_in) {
            /* The interrupt of the PIO setup FIS, which comes when its data is there; no register
             * FIS follows it. */
            set_tfd(p, &cmd->tf);
            port_event(p, IS_PSS);
        } else {
            send_d2h(p, &cmd->tf, true);
        }
    }
    run_port(p);
}

static const struct ata_adapter_ops port_ops = {.data = slot_data, .complete = slot_complete};

/* -- Taking commands -----------------------------------------------------------------------------
 */

static void reset_drive(struct ahci_port *p, bool soft)
{
    abort_all(p);
    if (!present(p))
        return;
    ata_device_reset(&p->dev, soft);
    p->signature_due = true;
    p->tfd = ATA_SR_BSY;
}

/* A FIS that writes the control register: software reset is SRST set, then cleared. */
static void control_fis(struct ahci_port *p, uint8_t control)
{
    if (control & 0x04) {
        p->srst = true;
        reset_drive(p, true);
    } else if (p->srst) {
        p->srst = false;
        settle(p);
    }
}

static bool is_queued(uint8_t command)
{
    return command == ATA_CMD_READ_FPDMA_QUEUED || command == ATA_CMD_WRITE_FPDMA_QUEUED;
}

/* Fetches and starts the command in slot n; false if it has to wait for others. */
static bool issue(struct ahci_port *p, unsigned n)
{
    struct pci_function *f = &p->hba->pci;
    struct ahci_slot *s = &p->slot[n];
    struct ata_taskfile *tf = &s->cmd.tf;
    uint8_t header[HEADER_SIZE], fis[20];
    uint32_t flags;
    bool queued;

    if (s->cmd.busy)
        return false; /* cut short by a reset, its block request is still in flight */
    s->header = p->clb + HEADER_SIZE * n;
    if (pci_dma_read(f, s->header, header, sizeof(header)))
        goto bus_error;
    flags = pci_get32(header);
    s->table = (pci_get32(header + 8) & ~0x7fu) | (uint64_t)pci_get32(header + 12) << 32;
    if (pci_dma_read(f, s->table, fis, sizeof(fis)))
        goto bus_error;
    queued = (fis[1] & 0x80) && is_queued(fis[2]);
    if ((fis[1] & 0x80) && (p->srst || p->signature_due))
        return false; /* the drive is being reset */
    for (unsigned i = 0; i < AHCI_SLOTS; i++)
        if (p->slot[i].issued && !(queued && p->slot[i].cmd.queued))
            return false;

    s->prds = flags >> 16;
    s->prd_next = s->prd_left = s->moved = 0;
    s->pio_in = false;
    p->cmd = (p->cmd & ~0x1f00u) | n << 8; /* current command slot */
    if (fis[0] != FIS_H2D || (fis[1] & 0x0f)) {
        p->ci &= ~(1u << n); /* nobody at that port multiplier port takes it */
        return true;
    }
    if (!(fis[1] & 0x80)) {
        p->ci &= ~(1u << n);
        control_fis(p, fis[15]);
        return true;
    }
    *tf = (struct ata_taskfile){
        .command = fis[2],
        .feature = (uint16_t)(fis[3] | fis[11] << 8),
        .device = fis[7],
        .count = (uint16_t)(fis[12] | fis[13] << 8),
    };
    for (unsigned i = 0; i < 3; i++)
        tf->lba |= (uint64_t)fis[4 + i] << 8 * i | (uint64_t)fis[8 + i] << (24 + 8 * i);
    s->issued = true;
    if (queued && (tf->count >> 3 & 0x1f) == n) {
        /* Accepted: the register FIS that clears BSY comes at once, and CI with it. */
        p->ci &= ~(1u << n);
        p->tfd = ATA_SR_DRDY | ATA_SR_DSC;
    } else {
        if (queued)
            tf->command = ATA_CMD_NOP; /* the tag must be the slot's number (5.6.4): refused */
        p->tfd = (p->tfd & ~0xffu) | ATA_SR_BSY;
    }
    ata_submit(&p->dev, &s->cmd);
    return true;

bus_error:
    p->stopped = true;
    port_event(p, IS_HBFS);
    return true;
}

/* Starts what can be started. */
static void run_port(struct ahci_port *p)
{
    bool again = true;

    if (p->running)
        return; /* the loop below looks again */
    p->running = true;
    while (again && p->ci && (p->cmd & CMD_ST) && present(p) && pci_bus_master(&p->hba->pci)) {
        again = false;
        for (unsigned n = 0; n < AHCI_SLOTS && !p->stopped; n++)
            if ((p->ci >> n & 1) && !p->slot[n].issued && issue(p, n) && !p->slot[n].issued)
                again = true; /* it is over already: others may have waited for it */
    }
    p->running = false;
}

/* -- Port registers ------------------------------------------------------------------------------
 */

static void stop_port(struct ahci_port *p)
{
    p->ci = p->sact = 0;
    p->stopped = false;
    p->cmd &= ~0x1f00u;
    abort_all(p);
    if (!p->signature_due && (p->tfd & ATA_SR_BSY))
        p->tfd = (p->tfd & ~0xffu) | ATA_SR_DRDY;
    settle(p);
}

static void write_cmd(struct ahci_port *p, uint32_t value)
{
    uint32_t old = p->cmd;

    p->cmd = (old & ~CMD_WRITABLE) | (value & CMD_WRITABLE);
    if ((value & CMD_CLO) && !(value & CMD_ST))
        p->tfd &= ~(uint32_t)(ATA_SR_BSY | ATA_SR_DRQ);
    if (p->cmd & CMD_FRE)
        p->cmd |= CMD_FR;
    else
        p->cmd &= ~CMD_FR;
    if ((p->cmd & CMD_FRE) && p->fis_due) {
        struct ata_taskfile tf;

        p->fis_due = false;
        ata_signature(&p->dev, &tf);
        send_d2h(p, &tf, false); /* no interrupt: nobody gave a command */
    }
    if ((old & CMD_ST) && !(p->cmd & CMD_ST)) {
        stop_port(p);
    } else if (!(old & CMD_ST) && (p->cmd & CMD_ST)) {
        p->cmd |= CMD_CR;
        run_port(p);
    }
}

/* COMRESET (10.4.2): DET goes to 1 and back to 0. */
static void write_sctl(struct ahci_port *p, uint32_t value)
{
    uint32_t was = p->sctl & 0x0f, is = value & 0x0f;

    p->sctl = value & 0x0fff;
    if (is == 1 && was != 1) {
        p->ssts = 0;
        p->srst = p->fis_due = false;
        reset_drive(p, false);
        p->signature_due = false;
        p->tfd = 0x7f;
    } else if (is == 4) { /* interface disabled */
        p->ssts = present(p) ? 4 : 0;
    } else if (is == 0 && was != 0) {
        if (!present(p))
            return;
        p->ssts = SSTS_UP;
        p->serr |= SERR_X;
        p->tfd = ATA_SR_BSY;
        p->signature_due = true;
        port_event(p, IS_PCS);
        settle(p);
    }
}

static uint32_t port_read(const struct ahci_port *p, unsigned reg)
{
    switch (reg) {
    case PX_CLB:
        return (uint32_t)p->clb;
    case PX_CLBU:
        return (uint32_t)(p->clb >> 32);
    case PX_FB:
        return (uint32_t)p->fb;
    case PX_FBU:
        return (uint32_t)(p->fb >> 32);
    case PX_IS:
        return p->is;
    case PX_IE:
        return p->ie;
    case PX_CMD:
        return p->cmd;
    case PX_TFD:
        return p->tfd;
    case PX_SIG:
        return p->sig;
    case PX_SSTS:
        return p->ssts;
    case PX_SCTL:
        return p->sctl;
    case PX_SERR:
        return p->serr;
    case PX_SACT:
        return p->sact;
    case PX_CI:
        return p->ci;
    }
    return 0;
}

static void set_low(uint64_t *reg, uint32_t value)
{
    *reg = (*reg & ~0xffffffffull) | value;
}

static void set_high(uint64_t *reg, uint32_t value)
{
    *reg = (*reg & 0xffffffff) | (uint64_t)value << 32;
}

static void port_write(struct ahci_port *p, unsigned reg, uint32_t value)
{
    switch (reg) {
    case PX_CLB:
        set_low(&p->clb, value & ~0x3ffu);
        break;
    case PX_CLBU:
        set_high(&p->clb, value);
        break;
    case PX_FB:
        set_low(&p->fb, value & ~0xffu);
        break;
    case PX_FBU:
        set_high(&p->fb, value);
        break;
    case PX_IS:
        p->is &= ~(value & IS_W1C);
        break;
    case PX_IE:
        p->ie = value & IE_MASK;
        break;
    case PX_CMD:
        write_cmd(p, value);
        break;
    case PX_SCTL:
        write_sctl(p, value);
        break;
    case PX_SERR:
        p->serr &= ~value;
        if (!(p->serr & SERR_X))
            p->is &= ~IS_PCS; /* PCS mirrors the bit */
        break;
    case PX_SACT:
        if (p->cmd & CMD_ST)
            p->sact |= value;
        break;
    case PX_CI:
        if (p->cmd & CMD_ST)
            p->ci |= value;
        run_port(p);
        break;
    }
    update_irq(p->hba);
}

/* -- Host registers ------------------------------------------------------------------------------
 */

static uint32_t hba_read(const struct ahci *h, unsigned reg)
{
    switch (reg) {
    case HBA_CAP:
        return CAP_VALUE;
    case HBA_GHC:
        return h->ghc | GHC_AE;
    case HBA_IS:
        return h->is;
    case HBA_PI:
        return (1u << AHCI_PORTS) - 1;
    case HBA_VS:
        return VERSION;
    }
    return 0;
}

static void hba_write(struct ahci *h, unsigned reg, uint32_t value)
{
    switch (reg) {
    case HBA_GHC:
        if (value & GHC_HR) {
            ahci_reset(h);
            return;
        }
        h->ghc = value & GHC_IE;
        break;
    case HBA_IS:
        h->is &= ~value;
        /* What is still pending in a port comes back, with a message of its own. */
        h->msi_level = false;
        break;
    }
    update_irq(h);
}

static uint32_t read_dword(struct ahci *h, unsigned at)
{
    unsigned port = (at - PORT_BASE) / PORT_SIZE;

    if (at < PORT_BASE)
        return hba_read(h, at);
    return port < AHCI_PORTS ? port_read(&h->port[port], at % PORT_SIZE) : 0;
}

/* For narrow writes: the rest of a register is written back as it is, unless its bits act when they
 * are written as one. */
static bool acts_on_ones(unsigned at)
{
    unsigned reg = at % PORT_SIZE;

    if (at < PORT_BASE)
        return at == HBA_IS;
    return reg == PX_IS || reg == PX_SERR || reg == PX_SACT || reg == PX_CI;
}

static uint64_t ahci_read(void *opaque, uint64_t offset, unsigned size)
{
    unsigned at = (unsigned)offset & ~3u, shift = 8 * (offset & 3);

    return read_dword(opaque, at) >> shift;
}

static void ahci_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct ahci *h = opaque;
    unsigned at = (unsigned)offset & ~3u, shift = 8 * (offset & 3);
    unsigned port = (at - PORT_BASE) / PORT_SIZE;
    uint32_t v = (uint32_t)value;

    if (size < 4) {
        uint32_t mask = ((1u << 8 * size) - 1) << shift;

        v = (v << shift & mask) | (acts_on_ones(at) ? 0 : read_dword(h, at) & ~mask);
    }
    if (at < PORT_BASE)
        hba_write(h, at, v);
    else if (port < AHCI_PORTS)
        port_write(&h->port[port], at % PORT_SIZE, v);
}

const struct io_ops ahci_ops = {.read = ahci_read, .write = ahci_write, .max_size = 4};

/* -- Construction --------------------------------------------------------------------------------
 */

static void reset_port(struct ahci_port *p)
{
    p->clb = p->fb = 0;
    p->is = p->ie = p->sact = p->ci = p->serr = p->sctl = 0;
    p->cmd = CMD_SUD | CMD_POD;
    p->tfd = 0x7f;
    p->sig = 0xffffffff;
    p->ssts = 0;
    p->stopped = p->srst = p->fis_due = p->signature_due = false;
    reset_drive(p, false);
    if (present(p)) {
        p->ssts = SSTS_UP;
        settle(p);
    }
}

void ahci_reset(struct ahci *h)
{
    h->ghc = h->is = 0;
    for (unsigned i = 0; i < AHCI_PORTS; i++)
        reset_port(&h->port[i]);
    update_irq(h);
}

static void pci_reset(void *opaque)
{
    ahci_reset(opaque);
}

static void config_written(void *opaque, unsigned at, unsigned size)
{
    struct ahci *h = opaque;

    for (unsigned i = 0; i < AHCI_PORTS; i++)
        run_port(&h->port[i]); /* bus mastering may be on now */
    update_irq(h);
}

static const struct pci_ops ahci_pci_ops = {.config_written = config_written, .reset = pci_reset};

void ahci_init(struct ahci *h)
{
    memset(h, 0, sizeof(*h));
    for (unsigned i = 0; i < AHCI_PORTS; i++) {
        struct ahci_port *p = &h->port[i];

        p->hba = h;
        p->index = i;
        for (unsigned n = 0; n < AHCI_SLOTS; n++)
            p->slot[n].port = p;
    }
}

int ahci_register(struct ahci *h, struct pci_host *host, uint8_t devfn)
{
    static const struct pci_id id = {.vendor = PCI_VENDOR_INTEL,
                                     .device = AHCI_PCI_DEVICE,
                                     .class = 0x010601,
                                     .revision = 2,
                                     .interrupt_pin = 1};
    struct pci_function *f = &h->pci;
    int err;

    for (unsigned i = 0; i < AHCI_PORTS; i++) {
        h->port[i].dev.adapter = &port_ops;
        h->port[i].dev.adapter_opaque = &h->port[i];
        h->port[i].dev.sata = true;
    }
    pci_function_init(f, &id, &ahci_pci_ops, h);
    f->config[0x90] = 0x40; /* MAP: AHCI mode */
    err = pci_add_bar(f, AHCI_BAR, PCI_BAR_MEM32, AHCI_BAR_SIZE, &ahci_ops, h);
    if (!err)
        err = pci_msi_init(f, 1);
    if (!err)
        err = pci_register(host, f, devfn);
    if (!err)
        ahci_reset(h);
    return err;
}

void ahci_destroy(struct ahci *h)
{
    for (unsigned i = 0; i < AHCI_PORTS; i++)
        for (unsigned n = 0; n < AHCI_SLOTS; n++)
            ata_command_destroy(&h->port[i].slot[n].cmd);
}
