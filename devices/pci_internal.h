/* Between pci.c and pci_msi.c. */
#ifndef RINGSHIFT_DEVICES_PCI_INTERNAL_H
#define RINGSHIFT_DEVICES_PCI_INTERNAL_H

#include "devices/pci.h"

/* The function's configuration changed somewhere: sends what is no longer masked. */
void pci_msi_config_written(struct pci_function *f);
void pci_msi_reset(struct pci_function *f);

#endif
