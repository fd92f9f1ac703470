/*
 * Guest-virtual memory as C code sees it: the page walk, the soft TLB that caches it, and loads
 * and stores on behalf of instructions that are emulated in C.
 *
 * Contract shared by everything here: on a guest fault the function fills v->exc (with CR2 and the
 * architectural error code; not delivered, no other state changed) and returns a negative value;
 * the caller turns that into CPU_EXCEPTION.
 */
#ifndef RINGSHIFT_MMU_MMU_H
#define RINGSHIFT_MMU_MMU_H

#include <stdbool.h>
#include <stdint.h>

#include "cpu/vcpu.h"
#include "mmu/ram.h"

enum mmu_access {
    MMU_READ = 0,
    MMU_WRITE = 1,
    MMU_EXEC = 2,
    MMU_KIND = 3,   /* mask of the three above                                            */
    MMU_SYSTEM = 4, /* implicit supervisor access (descriptor tables, TSS, IDT): CPL 0
                       rights whatever the CPL, and SMAP applies despite AC                */
    MMU_RMW = 8,    /* with MMU_WRITE: also reads; a fault is reported as a write          */
};

struct mmu_xlat {
    uint64_t gpa;       /* of the byte asked for                                             */
    uint8_t page_shift; /* 12, 21, 22 or 30: size of the guest mapping (12: A20 closed)      */
    bool writable;      /* a write by the current CPL would be allowed now (rights and D set) */
    bool user;          /* U/S = user through all levels                                     */
    bool global;
    bool nx;       /* may not be executed (EFER.NXE and XD at some level)               */
    bool rw;       /* R/W = 1 at all levels                                             */
    bool accessed; /* A = 1 at all levels                                               */
    bool dirty;    /* D = 1                                                             */
};

/*
 * Walks the guest's page tables for one byte (4-level paging in IA-32e mode, PAE paging from
 * v->pdpte, 32-bit paging with 4 MiB pages; identity when CR0.PG = 0; A20 applied), checks rights for `access` at the vCPU's CPL, CR0.WP, CR4.SMEP/SMAP, RFLAGS.AC, EFER.NXE and
 * reserved bits, and sets A (and D for writes) with atomic compare-exchange like a CPU.
 * A non-canonical address must have been rejected by the caller (mmu_canonical); outside 64-bit
 * mode a linear address must have been cut to 32 bits by the caller (cpu_linear).
 * Returns 0, or -1 with #PF in v->exc.  Page-table reads outside RAM read as all-ones.
 * SDM vol. 3, chapter 4.
 */
int mmu_walk(struct vcpu *v, uint64_t gva, unsigned access, struct mmu_xlat *out);

/* The same walk without side effects (no A/D, no exception, no rights check): for tracing,
 * `explain` and debuggers. Returns 0, or -1 if not mapped. */
int mmu_peek(const struct vcpu *v, uint64_t gva, struct mmu_xlat *out);

/*
 * The same for one address after another: what the tables above the last level said is remembered in
 * *near (all zero at first) for addresses in the same 2 MiB, as a CPU's paging-structure cache does.
 * To be used within one operation that may see the tables as they were at its start, such as a flush.
 */
struct mmu_near {
    const uint64_t *table; /* of the last level; NULL: nothing is remembered */
    uint64_t region;       /* address >> 21                                  */
    uint64_t all, any;     /* AND and OR of the entries that led there       */
    unsigned walks;        /* of mmu_translate_near()                        */
};
int mmu_peek_near(const struct vcpu *v, uint64_t gva, struct mmu_near *near, struct mmu_xlat *out);

/* The GPA for a data access of the current CPL that needs nothing but what *near remembers and an entry
 * of the last level: it is allowed, and the accessed and dirty flags are as it would set them.  False
 * if it is not that simple; nothing has changed then. */
bool mmu_walk_near(const struct vcpu *v, uint64_t gva, unsigned access, const struct mmu_near *near,
                   uint64_t *gpa);

/* Reads the four PDPTEs that PAE paging would load with this CR3.  0, or -1 if a present one has
 * reserved bits set (SDM vol. 3, 4.4.1): the caller raises #GP(0). */
int mmu_read_pdptes(struct vcpu *v, uint64_t cr3, uint64_t pdpte[4]);

/* The physical address as the A20 gate lets it out. */
static inline uint64_t mmu_a20(const struct vcpu *v, uint64_t gpa)
{
    return atomic_load_explicit(&v->a20_off, memory_order_relaxed) ? gpa & ~(1ull << 20) : gpa;
}

static inline bool mmu_canonical(uint64_t gva)
{
    return (uint64_t)((int64_t)(gva << 16) >> 16) == gva;
}

/*
 * Soft TLB. One table per privilege: stlb[0] for user accesses (CPL 3), stlb[1] for supervisor
 * ones. Index = (gva >> 12) & (STLB_SIZE - 1). Emitted code tests
 *     (uint64_t)(gva - tag) <= 4096 - size   (unsigned)
 * and then uses host + (gva - tag); so an invalid tag must be a page address whose index is a
 * different one: mmu_stlb_invalid_tag(index).
 * An entry's wtag is valid only if the page is writable under the current rights, its PTE's D bit
 * is set, it is RAM, and RAM_PAGE_CODE is clear. rtag only if it is RAM or ROM.
 * Supervisor table and SMAP: user pages may be in stlb[1] only while RFLAGS.AC = 1 or CR4.SMAP = 0;
 * mmu_stlb_ac_cleared() evicts them and must be called whenever AC goes from 1 to 0, at any CPL.
 * C code at supervisor privilege under AC also goes by stlb[0], and what it touches once is entered there.
 * Entries hold the rights of the current CR0.WP, CR4.SMAP/SMEP/PGE and EFER.NXE: a change of one of
 * these needs mmu_flush_all().  They carry no PCID: every CR3 write flushes them, but for some of the user's
 * that mmu_switch() finds again.
 */
static inline uint64_t mmu_stlb_invalid_tag(unsigned index)
{
    return (uint64_t)(index ^ 1) << GUEST_PAGE_SHIFT;
}

static inline struct soft_tlb_entry *mmu_stlb_slot(struct vcpu *v, uint64_t gva, bool user)
{
    return &v->stlb[user ? 0 : 1][(gva >> GUEST_PAGE_SHIFT) & (STLB_SIZE - 1)];
}

/* What mmu_translate() found. MMU_MMIO: the devices do it, or for a read of ROM (by an instruction
 * that also writes) mmu_mmio_read() itself. */
enum mmu_target { MMU_RAM, MMU_RAM_CODE, MMU_MMIO };

/*
 * Translates for a data access of the current CPL (or MMU_SYSTEM), filling the soft TLB when the
 * target is RAM. *host is the HVA of the byte (RAM) and *gpa its GPA. Returns an enum mmu_target,
 * or -1 with v->exc: #PF, or for a non-canonical address #GP(0) (#SS(0) if `stack`).
 * MMU_RAM_CODE is returned for writes to pages that hold translated code: the caller must call
 * ram_before_write() with the exact range first.
 */
int mmu_translate(struct vcpu *v, uint64_t gva, unsigned access, bool stack, void **host,
                  uint64_t *gpa);

/*
 * The same for one page after another of an operation on much memory: with *near (all zero at first; one
 * for each stream of addresses) most pages take one load from the guest's tables, and do not evict from the
 * soft TLB what is used again.
 */
int mmu_translate_near(struct vcpu *v, uint64_t gva, unsigned access, struct mmu_near *near,
                       void **host, uint64_t *gpa);
/* Operations on no more than this are better off with mmu_translate(). */
#define MMU_NEAR_BYTES (2 * GUEST_PAGE_SIZE)

void mmu_stlb_init(struct vcpu *v);
void mmu_flush_all(struct vcpu *v);       /* everything, global pages included               */
void mmu_flush_nonglobal(struct vcpu *v); /* CR3 write                                       */
void mmu_switch(struct vcpu *v);          /* CR3 write with "no flush" to another PCID      */
void mmu_flush_pcid(struct vcpu *v, uint64_t pcid); /* not the current one                   */
void mmu_flush_page(struct vcpu *v, uint64_t gva);  /* INVLPG: also global; any page size      */
void mmu_stlb_ac_cleared(struct vcpu *v);
/* Makes all entries that map this GPA page read-only (it now holds code). */
void mmu_stlb_protect_gpa(struct vcpu *v, uint64_t gpa);
/* Drops all entries that map a page of this GPA range (of whole pages): the memory map has changed.
 */
void mmu_stlb_drop_gpa(struct vcpu *v, uint64_t gpa, uint64_t len);

/*
 * The engine hooks flushes (exec caches, windows). Called after the soft TLB has been flushed.
 * kind: what was flushed; gva for MMU_FLUSHED_PAGE.
 */
enum mmu_flush_kind {
    MMU_FLUSHED_ALL,
    MMU_FLUSHED_NONGLOBAL, /* of the current PCID: CR3 has been loaded                      */
    MMU_FLUSHED_PAGE,
    MMU_SWITCHED,     /* CR3 was loaded with "no flush": other PCID, nothing is stale  */
    MMU_FLUSHED_PCID, /* a PCID that is not current, or one page of it; gva = the PCID  */
};
extern void engine_on_mmu_flush(struct vcpu *v, enum mmu_flush_kind kind, uint64_t gva);

/*
 * Loads and stores for instructions done in C; any size 1..64, may cross a page, may be MMIO
 * (through v->platform, after vcpu_fp_save). Both pages are checked before anything is written.
 * `gva` is the linear address, cut to 32 bits by the caller outside 64-bit mode; what crosses 4 GiB
 * there goes on at 0. access may add MMU_SYSTEM. 0, or -1 with v->exc.
 */
int mmu_load(struct vcpu *v, uint64_t gva, void *buf, unsigned size, unsigned access, bool stack);
int mmu_store(struct vcpu *v, uint64_t gva, const void *buf, unsigned size, unsigned access,
              bool stack);

/* Raw MMIO transfer of 1..64 bytes within a page, split into naturally aligned pieces of at most 8
 * bytes. A read of ROM reads the ROM. */
void mmu_mmio_read(struct vcpu *v, uint64_t gpa, void *buf, unsigned size);
void mmu_mmio_write(struct vcpu *v, uint64_t gpa, const void *buf, unsigned size);

#endif
