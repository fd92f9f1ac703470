/* Sizes of XSAVE images, from the host's CPUID leaf 0DH (SDM vol. 1, 13.4). */
#ifndef RINGSHIFT_TRANSLATOR_XSTATE_H
#define RINGSHIFT_TRANSLATOR_XSTATE_H

#include <stdbool.h>
#include <stdint.h>

/* Reads the host's layout; called once before any vCPU runs. */
void xstate_init(void);

/* Bytes an image with these components spans, standard or compacted; at least 576. */
unsigned xstate_size(uint64_t components, bool compacted);

/* Offset of component i in the standard format; 0 if the host does not have it. */
unsigned xstate_offset(unsigned i);

#endif
