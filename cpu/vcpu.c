/* Memory for vCPUs. */
#include "cpu/vcpu.h"

#include <stddef.h>
#include <sys/mman.h>

struct vcpu *vcpu_alloc(void)
{
    void *p = mmap(NULL, sizeof(struct vcpu), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                   -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

void vcpu_free(struct vcpu *v)
{
    if (v)
        munmap(v, sizeof(*v));
}
