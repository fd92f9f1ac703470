/* PIIX4 power management function: see piix4_pm.h.  Register names are the data sheet's. */
#include "devices/piix4_pm.h"

#include <linux/pci_regs.h>
#include <string.h>

#define DEVICE_82371AB_PM 0x7113
#define CLASS_BRIDGE_MISC 0x068000

enum {
    PMBA = 0x40,
    DEVACTB = 0x58,
    DEVRESA = 0x5c, /* device decode: which legacy ports are there */
    PMREGMISC = 0x80,
    SMBBA = 0x90,
    SMBHSTCFG = 0xd2,
    SMBREV = 0xd6,
};
enum { PMREGMISC_PMIOSE = 1, SMBHSTCFG_HST_EN = 1 };
#define DEVACTB_APMC_EN (1u << 25)
#define PMBA_MASK       0xffc0u
#define SMBBA_MASK      0xfff0u

/* -- SMBus host controller: a bus with nothing on it ------------------------------------------- */

enum { SMB_STS = 0, SMB_CNT = 2, SMB_CMD = 3, SMB_ADD = 4, SMB_DAT0 = 5, SMB_DAT1 = 6 };
enum { STS_DEV_ERR = 0x04, STS_CLEARED = 0x1e, CNT_START = 0x40 };

static uint64_t smb_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct piix4_pm *p = opaque;

    (void)size;
    switch (offset) {
    case SMB_STS:
        return p->smb_status;
    case SMB_CNT:
        return p->smb_control;
    case SMB_CMD:
        return p->smb_command;
    case SMB_ADD:
        return p->smb_address;
    case SMB_DAT0:
    case SMB_DAT1:
        return p->smb_data[offset - SMB_DAT0];
    }
    return 0;
}

static void smb_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct piix4_pm *p = opaque;
    uint8_t byte = (uint8_t)value;

    (void)size;
    switch (offset) {
    case SMB_STS: /* write one to clear */
        p->smb_status &= (uint8_t) ~(byte & STS_CLEARED);
        break;
    case SMB_CNT:
        p->smb_control = byte & (uint8_t)~CNT_START;
        if (byte & CNT_START)
            p->smb_status |= STS_DEV_ERR; /* nobody acknowledges */
        break;
    case SMB_CMD:
        p->smb_command = byte;
        break;
    case SMB_ADD:
        p->smb_address = byte;
        break;
    case SMB_DAT0:
    case SMB_DAT1:
        p->smb_data[offset - SMB_DAT0] = byte;
        break;
    }
}

static const struct io_ops smb_ops = {.read = smb_read, .write = smb_write, .max_size = 1};

/* -- APM --------------------------------------------------------------------------------------- */

static uint64_t apm_read(void *opaque, uint64_t offset, unsigned size)
{
    const struct piix4_pm *p = opaque;

    (void)size;
    return offset ? p->apm_status : p->apm_control;
}

static void apm_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
    struct piix4_pm *p = opaque;

    (void)size;
    *(offset ? &p->apm_status : &p->apm_control) = (uint8_t)value;
}

const struct io_ops piix4_apm_ops = {.read = apm_read, .write = apm_write, .max_size = 1};

/* -- The PCI function -------------------------------------------------------------------------- */

/* Moves a block of ports.  Where it does not fit (something else is there) it is nowhere. */
static void move(struct piix4_pm *p, uint32_t *where, uint32_t to, unsigned count,
                 const struct io_ops *ops, void *opaque)
{
    if (*where == to)
        return;
    if (*where != PIIX4_UNMAPPED)
        io_bus_remove(p->ports, *where);
    if (to != PIIX4_UNMAPPED && io_bus_add(p->ports, to, count, ops, opaque))
        to = PIIX4_UNMAPPED;
    *where = to;
}

static void update(struct piix4_pm *p)
{
    uint32_t pm = PIIX4_UNMAPPED, smb = PIIX4_UNMAPPED;

    if (p->f.config[PMREGMISC] & PMREGMISC_PMIOSE)
        pm = pci_get16(&p->f.config[PMBA]) & PMBA_MASK;
    if (p->f.config[SMBHSTCFG] & SMBHSTCFG_HST_EN)
        smb = pci_get16(&p->f.config[SMBBA]) & SMBBA_MASK;
    move(p, &p->pm_base, pm ? pm : PIIX4_UNMAPPED, ACPI_PM_PORTS, &acpi_pm_ops, p->pm);
    move(p, &p->smb_base, smb ? smb : PIIX4_UNMAPPED, PIIX4_SMB_PORTS, &smb_ops, p);
}

static void written(void *opaque, unsigned at, unsigned size)
{
    (void)at;
    (void)size;
    update(opaque);
}

static void reset(void *opaque)
{
    struct piix4_pm *p = opaque;

    p->apm_control = p->apm_status = 0;
    p->smb_status = p->smb_control = p->smb_command = p->smb_address = 0;
    memset(p->smb_data, 0, sizeof(p->smb_data));
    update(p);
}

static const struct pci_ops ops = {.config_written = written, .reset = reset};

void piix4_pm_assign(struct piix4_pm *p)
{
    pci_put32(&p->f.config[PMBA], ACPI_PM_PORT | 1);
    p->f.config[PMREGMISC] = PMREGMISC_PMIOSE;
    update(p);
}

int piix4_pm_init(struct piix4_pm *p, struct pci_host *h, struct acpi_pm *pm)
{
    static const struct pci_id id = {
        .vendor = PCI_VENDOR_INTEL,
        .device = DEVICE_82371AB_PM,
        .class = CLASS_BRIDGE_MISC,
        .revision = 3,
        .interrupt_pin = 1,
    };
    uint8_t *c = p->f.config, *w = p->f.writable;

    memset(p, 0, sizeof(*p));
    p->pm = pm;
    p->ports = h->cfg.ports;
    p->pm_base = p->smb_base = PIIX4_UNMAPPED;
    pci_function_init(&p->f, &id, &ops, p);
    pci_put16(c + PCI_STATUS, PCI_STATUS_DEVSEL_MEDIUM | PCI_STATUS_FAST_BACK);
    c[PCI_INTERRUPT_LINE] = ACPI_SCI_IRQ; /* hard-wired: the SCI is no PCI interrupt */
    w[PCI_INTERRUPT_LINE] = 0;
    pci_put32(c + PMBA, 1);
    pci_put32(w + PMBA, PMBA_MASK);
    pci_put32(c + DEVACTB, DEVACTB_APMC_EN);
    pci_put32(w + DEVACTB, ~DEVACTB_APMC_EN);
    /* What QEMU's machines show as decoded: both parallel and serial ports, the floppy. */
    c[DEVRESA + 3] = 0x90;
    c[DEVRESA + 7] = 0x60;
    c[DEVRESA + 11] = 0x08;
    memset(w + DEVRESA, 0xff, 12);
    w[PMREGMISC] = PMREGMISC_PMIOSE;
    pci_put32(c + SMBBA, 1);
    pci_put32(w + SMBBA, SMBBA_MASK);
    w[SMBHSTCFG] = 0x0f;
    return pci_register(h, &p->f, PCI_DEVFN_OF(PCI_ISA_SLOT, PIIX4_PM_FUNCTION));
}

void piix4_pm_destroy(struct piix4_pm *p)
{
    if (p->f.host) {
        move(p, &p->pm_base, PIIX4_UNMAPPED, 0, NULL, NULL);
        move(p, &p->smb_base, PIIX4_UNMAPPED, 0, NULL, NULL);
    }
    pci_function_destroy(&p->f);
}
