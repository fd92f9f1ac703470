/*
 * Entry points, trap stubs and mode switches of the 16/32-bit test kernel.
 *
 * Two ways in, both in 32-bit protected mode without paging: multiboot (Multiboot Specification
 * 0.6.96, 3.2: eax = 0x2badb002, ebx = information) and PVH (Xen, docs/misc/pvh.pandoc: ebx =
 * hvm_start_info).
 */
    .set SEL_KCODE, 0x08
    .set SEL_KDATA, 0x10
    .set SEL_LOW16, 0x28
    .set SEL_LOWDATA, 0x30
    .set SEL_BIGDATA, 0x38
    .set LOW, 0x10000

    .section .multiboot, "a"
    .balign 4
    .set FLAGS, 3                       /* aligned modules, memory information */
    .long 0x1badb002, FLAGS, -(0x1badb002 + FLAGS)

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18                      /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long start

    .text
    .code32
    .globl start
start:
    cli
    cld
    movl $boot_stack_top, %esp
    pushl $2
    popfl
    pushl %ebx
    pushl %eax
    call kernel_main
1:  hlt
    jmp 1b

    .bss
    .balign 16
    .skip 32768
boot_stack_top:
    .skip 16384
trap_stack_top:

/* One stub per vector, 16 bytes apart: push a zero where the CPU pushes no error code. */
    .text
    .balign 16
    .globl isr_stubs
isr_stubs:
    .set vec, 0
    .rept 256
    .balign 16
    .if !(vec == 8 || (vec >= 10 && vec <= 14) || vec == 17 || vec == 21)
    pushl $0
    .endif
    pushl $vec
    jmp isr_common
    .set vec, vec + 1
    .endr

/* The interrupted code's stack may be any segment: the frame is copied out through SS, C runs on a
 * flat stack of its own. */
    .globl isr_common
isr_common:
    pushal
    pushl %ds
    pushl %es
    pushl %fs
    pushl %gs
    cld
    movl $SEL_KDATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %esp, %esi
    movl %ss, %eax
    larl %eax, %eax
    testl $0x400000, %eax               /* SS.B */
    jnz 1f
    movzwl %si, %esi
1:  movl %esi, %ebx
    movl $trap_frame, %edi
    movl $17, %ecx
    testl $0x20000, %ss:64(%esi)        /* eflags.VM */
    jnz 2f
    testb $3, %ss:60(%esi)              /* CPL of the interrupted code */
    jz 3f
    movl $19, %ecx
    jmp 3f
2:  movl $23, %ecx
3:  rep movsl %ss:(%esi), %es:(%edi)
    movl %ebx, trap_frame + 23*4
    movw %ss, trap_frame + 24*4
    movl $SEL_KDATA, %eax
    movl %eax, %ss
    movl $trap_stack_top, %esp
    pushl $trap_frame
    call trap_entry
    lssl trap_frame + 23*4, %esp        /* resume */
    movl %esp, %edi
    movl $trap_frame, %esi
    movl $17, %ecx
4:  lodsl
    movl %eax, %ss:(%edi)
    addl $4, %edi
    loop 4b
    popl %gs
    popl %fs
    popl %es
    popl %ds
    popal
    addl $8, %esp
    iretl

    .bss
    .balign 16
    .globl trap_frame
trap_frame:
    .skip 25*4

    .text
/* int ctx_save(struct ctx *): as setjmp. */
    .globl ctx_save
ctx_save:
    movl 4(%esp), %eax
    movl (%esp), %edx
    movl %edx, (%eax)
    leal 4(%esp), %edx
    movl %edx, 4(%eax)
    movl %ebx, 8(%eax)
    movl %ebp, 12(%eax)
    movl %esi, 16(%eax)
    movl %edi, 20(%eax)
    xorl %eax, %eax
    ret

/* void ctx_jump(struct ctx *): back to ctx_save, which returns 1, with sane segments and flags. */
    .globl ctx_jump
ctx_jump:
    movl 4(%esp), %ecx
    movl $SEL_KDATA, %eax
    movl %eax, %ss
    movl 4(%ecx), %esp
    movl %eax, %ds
    movl %eax, %es
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    pushl $2
    popfl
    movl 8(%ecx), %ebx
    movl 12(%ecx), %ebp
    movl 16(%ecx), %esi
    movl 20(%ecx), %edi
    movl $1, %eax
    jmpl *(%ecx)

/* void regs_enter(const struct regs *): loads every register and goes there by IRET. */
    .globl regs_enter
regs_enter:
    movl 4(%esp), %edi
    testl $0x20000, 36(%edi)
    jnz 2f
    testl $3, 40(%edi)
    jnz 1f
    movl 44(%edi), %eax                 /* same privilege: on the new stack */
    movl 16(%edi), %ecx
    movl %eax, %ss
    movl %ecx, %esp
    jmp 3f
/* IRET to a 16-bit stack segment loads SP only: let the rest of ESP be zero. */
1:  movl $0x9000, %esp
    pushl 44(%edi)                      /* ss */
    pushl 16(%edi)                      /* esp */
    jmp 3f
2:  pushl 60(%edi)                      /* gs */
    pushl 56(%edi)                      /* fs */
    pushl 48(%edi)                      /* ds */
    pushl 52(%edi)                      /* es */
    pushl 44(%edi)
    pushl 16(%edi)
    pushl 36(%edi)
    pushl 40(%edi)
    pushl 32(%edi)
    pushl %ds                           /* V86: the others come with IRET */
    jmp 4f
3:  pushl 36(%edi)                      /* eflags */
    pushl 40(%edi)                      /* cs */
    pushl 32(%edi)                      /* eip */
    movw 52(%edi), %es
    movw 56(%edi), %fs
    movw 60(%edi), %gs
    pushl 48(%edi)
4:  movl 0(%edi), %eax
    movl 4(%edi), %ecx
    movl 8(%edi), %edx
    movl 12(%edi), %ebx
    movl 20(%edi), %ebp
    movl 24(%edi), %esi
    movl 28(%edi), %edi
    popl %ds
    iretl

/*
 * void real_run(void): runs real_regs in real mode until an interrupt or exception, then fills
 * real_frame.  In low memory; called in 32-bit protected mode.
 */
    .section .low, "awx"
low_base:
    .globl real_run
real_run:
    pushal
    pushfl
    movl %esp, real_kernel_esp
    ljmp $SEL_LOW16, $(1f - low_base)
    .code16
1:  movw $SEL_LOWDATA, %ax
    movw %ax, %ss
    movw $SEL_LOW16, %bx
    movw %bx, %ds
    cmpb $0, real_unreal - low_base
    je 2f
    movw $SEL_BIGDATA, %ax
2:  movw %ax, %es
    movw %ax, %fs
    movw %ax, %gs
    lidtl real_idtr - low_base
    movw %ax, %ds
    movl %cr0, %eax
    andl $~1, %eax
    movl %eax, %cr0
    ljmp $0x1000, $(3f - low_base)
3:  movw %cs, %ax
    movw %ax, %ds
    movw real_regs + 44 - low_base, %ss
    movl real_regs + 16 - low_base, %esp
    pushw real_regs + 36 - low_base          /* flags */
    pushw real_regs + 40 - low_base          /* cs */
    pushw real_regs + 32 - low_base          /* ip */
    movw real_regs + 52 - low_base, %es
    movw real_regs + 56 - low_base, %fs
    movw real_regs + 60 - low_base, %gs
    pushw real_regs + 48 - low_base
    movl real_regs + 0 - low_base, %eax
    movl real_regs + 4 - low_base, %ecx
    movl real_regs + 8 - low_base, %edx
    movl real_regs + 12 - low_base, %ebx
    movl real_regs + 20 - low_base, %ebp
    movl real_regs + 24 - low_base, %esi
    movl real_regs + 28 - low_base, %edi
    popw %ds
    iretw

/* Real-mode handlers, 8 bytes apart. */
    .balign 8
    .globl real_stubs
real_stubs:
    .set vec, 0
    .rept 256
    .balign 8
    pushw $vec
    jmp real_trap
    .set vec, vec + 1
    .endr

real_trap:                              /* vector, ip, cs, flags on the stack */
    pushal
    pushw %ds
    pushw %es
    pushw %fs
    pushw %gs
    cld
    movw $0x1000, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %sp, %si
    movw $(real_frame - low_base), %di
    movw $48, %cx
    rep movsb %ss:(%si), %es:(%di)
    movl %esp, real_frame + 48 - low_base
    movw %ss, real_frame + 52 - low_base
    movw $0, %ax                        /* a stack that a 16-bit segment can hold */
    movw %ax, %ss
    lgdtl kernel_gdtr_low - low_base
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl $SEL_KCODE, $1f
    .code32
1:  movl $SEL_KDATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    lidt kernel_idtr
    movl real_kernel_esp, %esp
    popfl
    popal
    ret

    .balign 8
    .globl real_regs, real_frame, real_idtr, real_unreal, kernel_gdtr_low
real_kernel_esp:
    .long 0
real_unreal:
    .long 0
real_idtr:
    .skip 8
kernel_gdtr_low:
    .skip 8
real_regs:
    .skip 64
real_frame:
    .skip 64

    .section .note.GNU-stack, "", @progbits
