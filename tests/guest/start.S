/*
 * Entry points and trap stubs of the test kernel.
 *
 * The ELF file has two entries.  e_entry is the 64-bit entry of the Linux boot protocol
 * (Documentation/arch/x86/boot.rst, "64-bit BOOT PROTOCOL"): long mode, flat segments, identity
 * mapping, rsi = boot_params.  The PVH note names a 32-bit entry (Xen, docs/misc/pvh.pandoc):
 * protected mode without paging, ebx = hvm_start_info; it enters long mode by itself and then
 * calls the 64-bit entry with a made-up boot_params, so that both paths end in the same state.  The
 * multiboot header (Multiboot Specification 0.6.96, 3.1; by addresses, because of the two entries)
 * leads there as well, once run-guest-tests has put its magic number in: for GRUB, where an emulator
 * loads no kernels itself.
 */
    .set MULTIBOOT_MAGIC, 0x2badb002
    .set MULTIBOOT_CMDLINE, 16
    .set BOOT_PARAMS_CMDLINE, 0x228
    .set PVH_START_INFO_CMDLINE, 24

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18                      /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad pvh_start

    .section .multiboot, "a"
    .balign 4
    .set MULTIBOOT_FLAGS, 0x10003       /* aligned modules, memory information, addresses */
multiboot_header:
    .long 0, MULTIBOOT_FLAGS, -(0x1badb002 + MULTIBOOT_FLAGS)
    .long multiboot_header, image_start, data_end, image_end, pvh_start

    .text
    .code32
    .globl pvh_start
pvh_start:
    cli
    cld
    movl $boot_stack_top, %esp
    movl PVH_START_INFO_CMDLINE(%ebx), %edx
    cmpl $MULTIBOOT_MAGIC, %eax
    jne 1f
    movl MULTIBOOT_CMDLINE(%ebx), %edx
1:  movl %edx, boot_params + BOOT_PARAMS_CMDLINE

    /* Identity-map 4 GiB with 2 MiB pages. */
    movl $boot_pdpt + 3, boot_pml4
    movl $boot_pd + 3, %eax
    movl $boot_pdpt, %edi
    movl $4, %ecx
1:  movl %eax, (%edi)
    addl $4096, %eax
    addl $8, %edi
    loop 1b
    movl $0x83, %eax
    movl $boot_pd, %edi
    movl $2048, %ecx
2:  movl %eax, (%edi)
    movl $0, 4(%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 2b

    movl $0x20, %eax                    /* CR4.PAE */
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx              /* EFER.LME */
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl $0x80000011, %eax              /* PG, ET, PE */
    movl %eax, %cr0
    lgdt boot_gdtr
    ljmp $0x10, $3f

    .code64
3:  movl $0x18, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    leaq boot_params(%rip), %rsi
    /* fall through */

    .globl start64
start64:
    cli
    cld
    leaq boot_stack_top(%rip), %rsp
    movq %rsi, %rdi
    xorl %ebp, %ebp
    call kernel_main
4:  hlt
    jmp 4b

    .section .rodata
    .balign 8
boot_gdt:
    .quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff
boot_gdtr:
    .word 31
    .quad boot_gdt

    .bss
    .balign 4096
boot_pml4:
    .skip 4096
boot_pdpt:
    .skip 4096
boot_pd:
    .skip 4 * 4096
boot_params:
    .skip 4096
    .skip 65536
boot_stack_top:

/* One stub per vector, 16 bytes apart: push a zero where the CPU pushes no error code. */
    .text
    .balign 16
    .globl isr_stubs
isr_stubs:
    .set vec, 0
    .rept 256
    .balign 16
    .if !(vec == 8 || (vec >= 10 && vec <= 14) || vec == 17 || vec == 21)
    pushq $0
    .endif
    pushq $vec
    jmp isr_common
    .set vec, vec + 1
    .endr

isr_common:
    pushq %r15
    pushq %r14
    pushq %r13
    pushq %r12
    pushq %r11
    pushq %r10
    pushq %r9
    pushq %r8
    pushq %rdi
    pushq %rsi
    pushq %rbp
    pushq $0                            /* the slot of rsp, which the CPU pushed */
    pushq %rbx
    pushq %rdx
    pushq %rcx
    pushq %rax
    cld
    movq %rsp, %rdi
    movq %rsp, %rbx
    andq $-16, %rsp
    call trap_entry
    movq %rbx, %rsp
    popq %rax
    popq %rcx
    popq %rdx
    popq %rbx
    addq $8, %rsp
    popq %rbp
    popq %rsi
    popq %rdi
    popq %r8
    popq %r9
    popq %r10
    popq %r11
    popq %r12
    popq %r13
    popq %r14
    popq %r15
    addq $16, %rsp
    iretq

/* int ctx_save(struct ctx *): as setjmp. */
    .globl ctx_save
ctx_save:
    movq (%rsp), %rax
    movq %rax, (%rdi)
    leaq 8(%rsp), %rax
    movq %rax, 8(%rdi)
    movq %rbx, 16(%rdi)
    movq %rbp, 24(%rdi)
    movq %r12, 32(%rdi)
    movq %r13, 40(%rdi)
    movq %r14, 48(%rdi)
    movq %r15, 56(%rdi)
    xorl %eax, %eax
    ret

/* void ctx_jump(struct ctx *): back to ctx_save, which returns 1, with sane segments and flags. */
    .globl ctx_jump
ctx_jump:
    movl $0x18, %eax
    movl %eax, %ss
    movl %eax, %ds
    movl %eax, %es
    movq 8(%rdi), %rsp
    pushq $2
    popfq
    movq 16(%rdi), %rbx
    movq 24(%rdi), %rbp
    movq 32(%rdi), %r12
    movq 40(%rdi), %r13
    movq 48(%rdi), %r14
    movq 56(%rdi), %r15
    movl $1, %eax
    jmpq *(%rdi)

/* void regs_enter(const struct regs *): loads every register and goes there by IRETQ. */
    .globl regs_enter
regs_enter:
    pushq 152(%rdi)                     /* ss */
    pushq 32(%rdi)                      /* rsp */
    pushq 136(%rdi)                     /* rflags */
    pushq 144(%rdi)                     /* cs */
    pushq 128(%rdi)                     /* rip */
    movq 0(%rdi), %rax
    movq 8(%rdi), %rcx
    movq 16(%rdi), %rdx
    movq 24(%rdi), %rbx
    movq 40(%rdi), %rbp
    movq 48(%rdi), %rsi
    movq 64(%rdi), %r8
    movq 72(%rdi), %r9
    movq 80(%rdi), %r10
    movq 88(%rdi), %r11
    movq 96(%rdi), %r12
    movq 104(%rdi), %r13
    movq 112(%rdi), %r14
    movq 120(%rdi), %r15
    movq 56(%rdi), %rdi
    iretq

    .section .note.GNU-stack, "", @progbits
