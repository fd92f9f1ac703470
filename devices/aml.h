/*
 * A writer of AML, the byte code of ACPI's definition blocks (ACPI 6.5, chapter 20), as far as the
 * DSDT of this machine needs it.  Objects are appended to a buffer; packages and scopes are opened
 * and closed, and their length is put in when they are closed.  On overflow everything further is
 * dropped and `overflow` is set, so callers check once, at the end.
 */
#ifndef RINGSHIFT_DEVICES_AML_H
#define RINGSHIFT_DEVICES_AML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AML_MAX_DEPTH 8

struct aml {
    uint8_t *buf;
    size_t len, cap;
    bool overflow;
    size_t open[AML_MAX_DEPTH]; /* where the package lengths of what is open go */
    unsigned depth;
};

void aml_init(struct aml *a, uint8_t *buf, size_t cap);

/* Scope and Device take a path of name segments of four characters, "\\_SB_" or "PCI0". */
void aml_begin_scope(struct aml *a, const char *path);
void aml_begin_device(struct aml *a, const char *name);
/* Name (name, ...): the object written next is its value. */
void aml_name(struct aml *a, const char *name);
void aml_begin_package(struct aml *a, uint8_t elements);
/* Name (name, ResourceTemplate () {...}): descriptors follow, then aml_end_resources(). */
void aml_begin_resources(struct aml *a, const char *name);
void aml_end_resources(struct aml *a);
/* Closes the innermost scope, device, package, method or If. */
void aml_end(struct aml *a);

/* Method (name, args) {...}, not serialized. */
void aml_begin_method(struct aml *a, const char *name, unsigned args);
/* If (condition) {...}: the condition is written next, then the body. */
void aml_begin_if(struct aml *a);
/* Bytes as they are: for terms that are used once. */
void aml_bytes(struct aml *a, const void *bytes, size_t len);
/* An absolute path of `segments` names of four characters each: "_SB_PCI0" is \_SB.PCI0. */
void aml_path(struct aml *a, const char *names, unsigned segments);
/* OperationRegion (region, PCI_Config, offset, n) and a Field of n bytes over it, which are
 * called `names`, four characters each. */
void aml_pci_config_bytes(struct aml *a, const char *region, uint8_t offset, unsigned n,
                          const char *names);

void aml_integer(struct aml *a, uint64_t value);
/* A compressed EISA ID such as "PNP0501". */
void aml_eisa_id(struct aml *a, const char *id);
void aml_string(struct aml *a, const char *s);

/* Resource descriptors (ACPI 6.5, 6.4). */
void aml_io(struct aml *a, uint16_t port, uint8_t len);
void aml_irq(struct aml *a, unsigned irq); /* edge-triggered, active high, exclusive */
/* Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) {...} */
void aml_shared_irqs(struct aml *a, const uint8_t *irqs, unsigned n);
/* Address ranges a bus passes on, [first, last]. */
void aml_bus_range(struct aml *a, uint16_t first, uint16_t last);
void aml_io_range(struct aml *a, uint16_t first, uint16_t last);
void aml_memory_range(struct aml *a, uint32_t first, uint32_t last);
/* Memory that is in use by the device itself. */
void aml_memory_fixed(struct aml *a, uint32_t base, uint32_t len);

#endif
