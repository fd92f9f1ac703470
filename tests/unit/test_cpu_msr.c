/* MSRs, CPUID models, reset and FP state. */
#include "tests/unit/cpu_fixture.h"

#include <cpuid.h>

#include "translator/callouts.h"

TestSuite(cpu_msr, .init = cpu_setup, .fini = cpu_teardown);
TestSuite(cpu_cpuid, .init = cpu_setup, .fini = cpu_teardown);
TestSuite(cpu_reset, .init = cpu_setup, .fini = cpu_teardown);
TestSuite(cpu_fpu);

static enum cpu_result wr(uint32_t msr, uint64_t value)
{
    v->gpr[RCX] = msr;
    v->gpr[RAX] = (uint32_t)value;
    v->gpr[RDX] = value >> 32;
    return RUN(0x0f, 0x30);
}

static uint64_t rd(uint32_t msr)
{
    v->gpr[RCX] = msr;
    cr_assert_eq(RUN(0x0f, 0x32), CPU_NEXT, "rdmsr %#x", msr);
    return v->gpr[RDX] << 32 | v->gpr[RAX];
}

Test(cpu_msr, plain_ones)
{
    static const uint32_t msrs[] = {0xc0000081, 0xc0000082, 0xc0000083, 0xc0000100,
                                    0xc0000101, 0xc0000102, 0x175,      0x176};
    for (unsigned i = 0; i < 8; i++) {
        cr_assert_eq(wr(msrs[i], 0xffff800012345678ull), CPU_NEXT);
        cr_assert_eq(rd(msrs[i]), 0xffff800012345678ull);
        if (msrs[i] != 0xc0000081) {
            expect_fault_code(wr(msrs[i], NONCANON), EXC_GP, 0);
            cr_assert_eq(rd(msrs[i]), 0xffff800012345678ull);
        }
    }
    cr_assert_eq(v->seg[SEG_FS].base, 0xffff800012345678ull);
    cr_assert_eq(wr(0xc0000084, 0x47700), CPU_NEXT);
    cr_assert_eq(wr(0xc0000103, 5), CPU_NEXT);
    expect_fault_code(wr(0xc0000103, 1ull << 32), EXC_GP, 0);
    expect_fault_code(wr(0x12345, 0), EXC_GP, 0);
    v->gpr[RCX] = 0x12345;
    expect_fault_code(RUN(0x0f, 0x32), EXC_GP, 0);
    enter_user();
    v->gpr[RCX] = 0x10;
    expect_fault_code(RUN(0x0f, 0x32), EXC_GP, 0);
    expect_fault_code(RUN(0x0f, 0x30), EXC_GP, 0);
}

Test(cpu_msr, efer)
{
    cr_assert_eq(wr(MSR_EFER, EFER_LME | EFER_SCE), CPU_JUMP);
    cr_assert_eq(rd(MSR_EFER), EFER_LME | EFER_LMA | EFER_SCE, "LMA is read-only");
    expect_fault_code(wr(MSR_EFER, EFER_SCE), EXC_GP, 0);
    expect_fault_code(wr(MSR_EFER, EFER_LME | 1 << 12), EXC_GP, 0);
    unsigned n = flush_count[MMU_FLUSHED_ALL];
    cr_assert_eq(wr(MSR_EFER, EFER_LME | EFER_SCE | EFER_NX), CPU_JUMP);
    cr_assert_eq(flush_count[MMU_FLUSHED_ALL], n + 1);
}

Test(cpu_msr, memory_types)
{
    cr_assert_eq(rd(0xfe), 0x508);
    cr_assert_eq(wr(0x277, 0x0407050600070106ull), CPU_NEXT);
    cr_assert_eq(rd(0x277), 0x0407050600070106ull);
    expect_fault_code(wr(0x277, 2), EXC_GP, 0);
    expect_fault_code(wr(0x277, 8ull << 56), EXC_GP, 0);
    cr_assert_eq(wr(0x2ff, 0xc06), CPU_NEXT);
    expect_fault_code(wr(0x2ff, 0x1c06), EXC_GP, 0);
    expect_fault_code(wr(0x2ff, 0xc02), EXC_GP, 0);
    cr_assert_eq(wr(0x26f, 0x0506050605060506ull), CPU_NEXT);
    cr_assert_eq(rd(0x26f), 0x0506050605060506ull);
    expect_fault_code(wr(0x250, 0x0700000000000000ull), EXC_GP, 0);
    cr_assert_eq(wr(0x200, 0xc0000006), CPU_NEXT);
    expect_fault_code(wr(0x200, 0xc0000106), EXC_GP, 0);
    expect_fault_code(wr(0x201, 0x7ff), EXC_GP, 0);
    expect_fault_code(wr(0x201, 1ull << CPU_PHYS_BITS | 0x800), EXC_GP, 0);
    cr_assert_eq(wr(0x20f, (1ull << CPU_PHYS_BITS) - 0x40000000 + 0x800), CPU_NEXT);
    v->gpr[RCX] = 0x210;
    expect_fault_code(RUN(0x0f, 0x32), EXC_GP, 0);
}

Test(cpu_msr, tsc)
{
    cr_assert_eq(wr(0x10, 1ull << 50), CPU_JUMP, "RDTSC is translated anew");
    uint64_t now = rd(0x10);
    cr_assert_geq(now, 1ull << 50);
    cr_assert_lt(now - (1ull << 50), 1ull << 34);
    uint64_t adjust = rd(0x3b);
    cr_assert_eq(adjust, v->tsc_offset);
    cr_assert_eq(wr(0x3b, adjust + (1ull << 40)), CPU_JUMP);
    cr_assert_geq(rd(0x10), (1ull << 50) + (1ull << 40));
    cr_assert_eq(wr(0x3b, 0), CPU_JUMP);
    cr_assert_eq(v->tsc_offset, 0);
}

Test(cpu_msr, apic_goes_to_the_platform)
{
    cr_assert_eq(wr(0x6e0, 77), CPU_NEXT);
    cr_assert_eq(fake.apic_value, 77);
    fake.apic_value = 78;
    cr_assert_eq(rd(0x802), 78);
    expect_fault_code(wr(0x8ff, 0), EXC_GP, 0);
    cr_assert_eq(wr(0x1b, 0xfee00100), CPU_NEXT);
    cr_assert_eq(v->apic_base, 0xfee00100);
}

Test(cpu_msr, speculation)
{
    cr_assert_eq(wr(0x48, 1), CPU_NEXT);
    cr_assert_eq(rd(0x48), 1);
    expect_fault_code(wr(0x48, 1ull << 40), EXC_GP, 0);
    cr_assert_eq(wr(0x49, 1), CPU_NEXT);
    expect_fault_code(wr(0x49, 2), EXC_GP, 0);
    cr_assert_eq(wr(0x10b, 1), CPU_NEXT);
    cr_assert_eq(rd(0x10a) & 1, 1);
    expect_fault_code(wr(0x10a, 0), EXC_GP, 0);
    model.vendor = CPU_VENDOR_AMD;
    v->gpr[RCX] = 0x10a;
    expect_fault_code(RUN(0x0f, 0x32), EXC_GP, 0);
    cr_assert_eq(rd(0xc0010015), 1 << 24);
    cr_assert_eq(wr(0xc0011029, 2), CPU_NEXT);
}

Test(cpu_msr, reading_never_crashes)
{
    for (uint32_t msr = 0; msr < 0x3000; msr++) {
        uint64_t value;
        cpu_rdmsr(v, msr, &value);
        cpu_rdmsr(v, 0xc0000000 + msr, &value);
        cpu_rdmsr(v, 0xc0010000 + msr, &value);
        cpu_wrmsr(v, msr, rnd());
        cpu_wrmsr(v, 0xc0000000 + msr, rnd());
        cpu_wrmsr(v, 0xc0010000 + msr, rnd());
    }
}

/* -- CPUID. ------------------------------------------------------------------------------------ */

Test(cpu_cpuid, instruction_clears_upper_halves)
{
    v->gpr[RAX] = 0xffffffff00000000ull;
    v->gpr[RCX] = ~0ull;
    v->gpr[RBX] = v->gpr[RDX] = ~0ull;
    cr_assert_eq(RUN(0x0f, 0xa2), CPU_NEXT);
    cr_assert_eq(v->gpr[RAX], 0x16);
    cr_assert_eq(v->gpr[RBX], 0x756e6547);
    cr_assert_eq(v->gpr[RCX], 0x6c65746e);
    cr_assert_eq(v->gpr[RDX], 0x49656e69);
}

Test(cpu_cpuid, dynamic_bits)
{
    uint32_t r[4];
    cpu_cpuid(v, 1, 0, r);
    cr_assert_not(r[2] & 1 << 27);
    cr_assert(r[3] & 1 << 9);
    v->cr4 |= CR4_OSXSAVE;
    v->apic_base = 0xfee00000;
    v->id = 5;
    cpu_cpuid(v, 1, 0, r);
    cr_assert(r[2] & 1 << 27);
    cr_assert_not(r[3] & 1 << 9);
    cr_assert_eq(r[1] >> 24, 5);
    cpu_cpuid(v, 0xb, 7, r);
    cr_assert_eq(r[0], 0);
    cr_assert_eq(r[1], 0);
    cr_assert_eq(r[2], 7);
    cr_assert_eq(r[3], 5);
}

/* Linux's native_calibrate_tsc(), in its 32-bit arithmetic. */
static double tsc_error(uint64_t hz)
{
    uint32_t r[4];
    cpu_model_baseline(&model, 1, hz);
    cpu_cpuid(v, 0x15, 0, r);
    cr_assert_neq(r[0], 0);
    cr_assert_eq(r[2], APIC_BUS_HZ);
    uint32_t khz = r[2] / 1000 * r[1] / r[0];
    double error = khz * 1000.0 / (double)hz - 1;
    return error < 0 ? -error : error;
}

Test(cpu_cpuid, tsc_frequency)
{
    for (uint64_t hz = 1000000000; hz < 5800000000; hz += 12345677)
        cr_assert_lt(tsc_error(hz), 2e-6, "%lu Hz", hz);
    cr_assert_lt(tsc_error(2300000000), 1e-9);
    cr_assert_lt(tsc_error(2299998123), 2e-6);
}

Test(cpu_cpuid, host_model)
{
    uint32_t r[4], h[4];
    cpu_model_host(&model, 4, 2300000000);
    v->xcr0 = 1;
    cpu_cpuid(v, 0, 0, r);
    __cpuid(0, h[0], h[1], h[2], h[3]);
    cr_assert_eq(r[1], h[1]);
    cpu_cpuid(v, 1, 0, r);
    __cpuid(1, h[0], h[1], h[2], h[3]);
    cr_assert_eq(r[0], h[0]);
    cr_assert_eq(r[1] >> 16 & 0xff, 4);
    cr_assert(r[2] >> 31);
    cr_assert_not(r[2] & (1 << 3 | 1 << 5 | 1 << 15), "MONITOR, VMX, PDCM");
    cr_assert_not(r[3] & (1 << 21 | 1 << 22 | 1 << 29), "DS, ACPI, TM");
    cpu_cpuid(v, 7, 0, r);
    __cpuid_count(7, 0, h[0], h[1], h[2], h[3]);
    uint32_t virtual = 1 << 0 | 1 << 1 | 1 << 7 | 1 << 10 | 1 << 20;
    cr_assert_eq(r[1] & ~h[1] & ~virtual, 0, "no feature that the host lacks");
    cr_assert_not(r[1] & (1 << 4 | 1 << 11 | 1 << 14 | 1 << 2 | 1 << 25), "HLE, RTM, MPX, SGX, PT");
    cr_assert_not(r[2] & (1 << 3 | 1 << 5 | 1 << 7 | 1 << 16 | 1 << 28 | 1 << 29),
                  "PKU, WAITPKG, CET, LA57, MOVDIR64B, ENQCMD");
    cr_assert_not(r[3] & (1 << 5 | 1 << 20 | 1 << 22 | 1 << 24 | 1 << 25), "UINTR, IBT, AMX");
    cpu_cpuid(v, 0xa, 0, r);
    cr_assert_eq(r[0] | r[1] | r[2] | r[3], 0);
    cpu_cpuid(v, 0x40000000, 0, r);
    cr_assert_arr_eq((char *)&r[1], "RingshiftRS", 12);
    cpu_cpuid(v, 0x80000008, 0, r);
    cr_assert_eq(r[0] & 0xffff, CPU_PHYS_BITS | 48 << 8);
    cpu_cpuid(v, 0xb, 0, r);
    cr_assert_eq(r[0], 0);
    cpu_cpuid(v, 0xb, 1, r);
    cr_assert_eq(r[0], 2);
    cr_assert_eq(r[1], 4);
    cr_assert_eq(r[2], 0x201);
    char brand[49] = {0};
    for (unsigned i = 0; i < 3; i++)
        cpu_cpuid(v, 0x80000002 + i, 0, (uint32_t *)(brand + 16 * i));
    cr_assert_eq(strncmp(brand, "Ringshift virtual CPU (", 23), 0);
    cr_assert_eq(brand[strlen(brand) - 1], ')');
    /* Unknown leaves. */
    cpu_cpuid(v, 0x20, 0, r);
    cr_assert_eq(r[0] | r[1] | r[2] | r[3], 0);
    cpu_cpuid(v, 0xffffffff, 0xffffffff, r);
    cr_assert_eq(r[0] | r[1] | r[2] | r[3], 0);
    cpu_cpuid(v, 7, 0xffffffff, r);
    cr_assert_eq(r[0] | r[1] | r[2] | r[3], 0);
}

Test(cpu_cpuid, xsave_leaf)
{
    uint32_t r[4], a, b, c, d;
    cpu_model_host(&model, 1, 2300000000);
    __cpuid(1, a, b, c, d);
    if (!(c & 1 << 27))
        return;
    cpu_cpuid(v, 0xd, 0, r);
    cr_assert_eq(r[0], model.xcr0_valid);
    cr_assert_eq(r[0] & ~0xe7u, 0);
    cr_assert_eq(r[1], 576);
    uint32_t max = r[2];
    v->xcr0 = model.xcr0_valid;
    cpu_cpuid(v, 0xd, 0, r);
    cr_assert_eq(r[1], max);
    v->xcr0 = 3;
    cpu_cpuid(v, 0xd, 0, r);
    cr_assert_eq(r[1], 576);
    if (model.xcr0_valid & 4) {
        v->xcr0 = 7;
        cpu_cpuid(v, 0xd, 0, r);
        cr_assert_eq(r[1], 832);
        cpu_cpuid(v, 0xd, 2, r);
        cr_assert_eq(r[0], 256);
        cr_assert_eq(r[1], 576);
    }
    for (uint32_t sub = 8; sub < 64; sub++) {
        cpu_cpuid(v, 0xd, sub, r);
        cr_assert_eq(r[0], 0, "component %u", sub);
    }
    cpu_cpuid(v, 0xd, 1, r);
    cr_assert_not(r[0] & ~7u, "no XSAVES, no XFD");
}

Test(cpu_msr, a_write_to_the_tsc_arms_a_pending_deadline_anew)
{
    static const uint32_t moves_tsc[] = {0x10, 0x3b};
    for (unsigned i = 0; i < 2; i++) {
        fake.apic_value = 0;
        fake.apic_writes = 0;
        cr_assert_eq(cpu_wrmsr(v, moves_tsc[i], 1000), CPU_NEXT);
        cr_assert_eq(fake.apic_writes, 0, "no deadline is pending");
        fake.apic_value = 123456;
        cr_assert_eq(cpu_wrmsr(v, moves_tsc[i], 2000), CPU_NEXT);
        cr_assert_eq(fake.apic_writes, 1);
        cr_assert_eq(fake.apic_value, 123456);
    }
}

/* -- Reset. ------------------------------------------------------------------------------------ */

Test(cpu_reset, power_on_and_boot)
{
    v->tsc_adjust = 5;
    v->tsc_offset = 7;
    v->events = EV_INTR;
    v->fp_area = NULL;
    vcpu_reset(v);
    cr_assert_eq(v->rip, 0xfff0);
    cr_assert_eq(v->seg[SEG_CS].base, 0xffff0000);
    cr_assert_eq(v->cr0, 0x60000010);
    cr_assert_eq(v->gpr[RDX], 0x106a5);
    cr_assert_eq(v->tsc_offset, 2);
    cr_assert_eq(v->events, 0);
    cr_assert_eq(v->dr[6], 0xffff0ff0);
    cr_assert_eq(v->apic_base, 0xfee00900);
    vcpu_setup_long64(v, 0x1000200, 0x90000, 0x5000, 0x6000, 0x1f, 0x10, 0x18);
    cr_assert(vcpu_long64(v));
    cr_assert_eq(v->rip, 0x1000200);
    cr_assert_eq(v->gpr[RSI], 0x90000);
    cr_assert_eq(v->cr3, 0x5000);
    cr_assert_eq(v->seg[SEG_CS].sel, 0x10);
    cr_assert_eq(v->seg[SEG_SS].sel, 0x18);
    cr_assert_eq(v->rflags, 2);
    cr_assert_eq(v->mtrr_def_type, 0xc06);
    /* What a write through WRMSR would have accepted. */
    for (unsigned i = 0; i < 16; i++)
        cr_assert_eq(cpu_wrmsr(v, 0x200 + i, v->mtrr_var[i]), CPU_NEXT);
}

/* -- FP state. --------------------------------------------------------------------------------- */

Test(cpu_fpu, save_and_restore)
{
    static struct vcpu fp __attribute__((aligned(64)));
    uint32_t mxcsr;
    uint16_t fcw;
    uint64_t value = 0x1122334455667788, out = 0;

    cr_assert_eq(vcpu_fp_init(&fp), 0);
    cr_assert_eq((uintptr_t)fp.fp_area & 63, 0);
    cr_assert_eq(fp.fp_saved, 1);
    vcpu_fp_restore(&fp);
    cr_assert_eq(fp.fp_saved, 0);
    __asm__ volatile("stmxcsr %0\n\tfnstcw %1\n\tmovq %%xmm7, %2"
                     : "=m"(mxcsr), "=m"(fcw), "=r"(out));
    cr_assert_eq(mxcsr, 0x1f80);
    cr_assert_eq(fcw, 0x37f);
    cr_assert_eq(out, 0);

    /* A guest with odd control words and a full x87 stack. */
    uint32_t guest_mxcsr = 0x7f80;
    uint16_t guest_fcw = 0x27f;
    fp.fp_saved = 0;
    __asm__ volatile("movq %0, %%xmm7\n\tldmxcsr %1\n\tfldcw %2\n\tfldpi\n\tfldl2e"
                     :
                     : "r"(value), "m"(guest_mxcsr), "m"(guest_fcw)
                     : "xmm7");
    vcpu_fp_save(&fp);
    __asm__ volatile("stmxcsr %0\n\tfnstcw %1" : "=m"(mxcsr), "=m"(fcw));
    cr_assert_eq(fp.fp_saved, 1);
    cr_assert_eq(mxcsr, 0x1f80);
    cr_assert_eq(fcw, 0x37f);
    vcpu_fp_save(&fp); /* idempotent: does not save the C state over the guest's */
    __asm__ volatile("xorps %%xmm7, %%xmm7" : : : "xmm7");
    vcpu_fp_restore(&fp);
    long double l2e, pi;
    __asm__ volatile("movq %%xmm7, %0\n\tstmxcsr %1\n\tfnstcw %2\n\tfstpt %3\n\tfstpt %4\n\t"
                     "fninit"
                     : "=r"(out), "=m"(mxcsr), "=m"(fcw), "=m"(l2e), "=m"(pi));
    __asm__ volatile("ldmxcsr %0" : : "m"((uint32_t){0x1f80}));
    cr_assert_eq(out, value);
    cr_assert_eq(mxcsr, guest_mxcsr);
    cr_assert_eq(fcw, guest_fcw);
    cr_assert(pi > 3.14L && pi < 3.15L && l2e > 1.44L && l2e < 1.45L);
    vcpu_fp_destroy(&fp);
    cr_assert_null(fp.fp_area);
}
