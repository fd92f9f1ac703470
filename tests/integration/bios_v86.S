/*
 * A virtual-8086 monitor like those of DOS' memory managers: SeaBIOS and the VGA's BIOS run in V86
 * mode, at CPL 3 with paging on, and what traps is emulated (SDM vol. 3, chapter 20).  Three ways:
 *
 *     v86_iopl3     IOPL 3: only INT n traps, by its gates' privilege; interrupts are reflected
 *     v86_trapped   IOPL 0: CLI, STI, PUSHF, POPF, INT n and IRET trap, and the monitor keeps IF
 *     v86_vme       IOPL 0, CR4.VME: the processor keeps VIF and VIP and redirects INT n itself
 *
 * Each does the same work in V86 mode: memory size, ticks, a sector of the disk, a character on the
 * screen, an interrupt handler of its own.
 */
    .set SECTORS, 17
    .include "bios_boot.inc"

    .set IVT_TICKS, 0x46c
    .set TSS, 0x10000                   /* made at run time: TSS, redirection map, I/O map */
    .set IDT, 0x13000
    .set PAGES, 0x14000
    .set MONITOR_TOP, 0x18000
    .set IOMAP, 0x68 + 32
    .set VECTORS, 0x60
    .set PIC_BASE, 0x50                 /* where hardware interrupts go meanwhile */
    .set EXIT, 0xfe                     /* INT number that leaves V86 mode */
    .set CODE32, 0x08
    .set DATA32, 0x10
    .set CODE16, 0x18
    .set DATA16, 0x20
    .set TSS_SEL, 0x28
    .set IF, 0x200
    .set VM, 0x20000
    .set VIF, 0x80000
    .set VIP, 0x100000
    /* On the monitor's stack. */
    .set F_VECTOR, 32
    .set F_ERROR, 36
    .set F_EIP, 40
    .set F_CS, 44
    .set F_FLAGS, 48
    .set F_ESP, 52
    .set F_SS, 56

program:
    int $0x12
    movw %ax, memory
    movw $handler60, 4*0x60
    movw $0, 4*0x60+2

    PART v86_iopl3
    movb $0, mode
    call run_v86
    cmpw $1, result
    jne 1f
    cmpw $5, soft_ints                  /* every INT came by the monitor */
    jb 1f
    cmpw $3, hard_ints
    jb 1f
    cmpw $0, emulated                   /* and nothing else but HLT */
1:  UNLESS je

    PART v86_trapped
    movb $1, mode
    call run_v86
    cmpw $1, result
    jne 1f
    cmpw $5, soft_ints
    jb 1f
    cmpw $3, hard_ints
    jb 1f
    cmpw $20, emulated
    jb 1f
    testw %ax, %ax
    cmpw %ax, %ax
1:  UNLESS je

    PART v86_vme
    movl $1, %eax
    cpuid
    testb $2, %dl
    jz 2f                               /* there is no VME: nothing to be wrong */
    movb $2, mode
    call run_v86
    cmpw $1, result
    jne 1f
    cmpw $3, hard_ints
    jb 1f
    cmpw $1, soft_ints                  /* the last one: others were redirected */
    jne 1f
2:  cmpw %ax, %ax
1:  UNLESS je
    jmp end

/* -- Into V86 mode and back --------------------------------------------------------------------- */

run_v86:
    cli
    movw $0, result
    movw $0, soft_ints
    movw $0, hard_ints
    movw $0, emulated
    movw $0, pending
    movb $1, vif
    movw %sp, real_sp
    inb $0x21, %al
    movb %al, imr
    inb $0xa1, %al
    movb %al, imr + 1
    movw $PIC_BASE | (PIC_BASE + 8) << 8, %bx
    call set_pics
    lgdt gdtr
    lidt idtr
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    ljmpl $CODE32, $enter32
    .code32
enter32:
    movl $DATA32, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $MONITOR_TOP, %esp
    cld
    movl $TSS, %edi                     /* TSS: ESP0, SS0; all ports allowed */
    xorl %eax, %eax
    movl $(IOMAP + 0x2004) / 4, %ecx
    rep stosl
    movl $MONITOR_TOP, TSS + 4
    movl $DATA32, TSS + 8
    movw $IOMAP, TSS + 0x66
    movb $0xff, TSS + IOMAP + 0x2000
    movb $1 << (EXIT & 7), TSS + 0x68 + EXIT / 8 /* not redirected */
    movl $IDT, %edi
    movl $stubs, %edx
    movl $VECTORS, %ecx
1:  movl %edx, %eax                     /* 32-bit interrupt gates, DPL 0 */
    andl $0xffff, %eax
    orl $CODE32 << 16, %eax
    stosl
    movl %edx, %eax
    andl $0xffff0000, %eax
    orl $0x8e00, %eax
    stosl
    addl $16, %edx
    loop 1b
    movb $0x89, gdt + TSS_SEL + 5       /* not busy */
    movl $TSS_SEL, %eax
    ltr %ax
    movl $PAGES, %edi
    movl $1024, %ecx
    xorl %eax, %eax
    rep stosl
    movl $0x87, PAGES                   /* 4 MiB, present, writable, user */
    movl $PAGES, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    movl %eax, real_cr4
    orl $0x10, %eax
    cmpb $2, mode
    jne 2f
    orl $1, %eax                        /* VME */
2:  movl %eax, %cr4
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    xorl %eax, %eax
    pushl %eax                          /* GS, FS, DS, ES, SS */
    pushl %eax
    pushl %eax
    pushl %eax
    pushl %eax
    pushl $0x6800
    movl $VM | IF | 2, %eax
    cmpb $0, mode
    jne 3f
    orl $0x3000, %eax
3:  cmpb $2, mode
    jne 4f
    orl $VIF, %eax
4:  pushl %eax
    pushl $0
    pushl $v86_main
    iretl

leave32:
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    xorl %eax, %eax
    movl %eax, %cr3
    movl real_cr4, %eax
    movl %eax, %cr4
    ljmpl $CODE16, $leave16
    .code16
leave16:
    movw $DATA16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl %cr0, %eax
    andb $0xfe, %al
    movl %eax, %cr0
    ljmpw $0, $leave_real
leave_real:
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movzwl real_sp, %esp
    lidt real_idtr
    movw $8 | 0x70 << 8, %bx
    call set_pics
    sti
    ret

/* BL, BH: vectors of the two interrupt controllers; the masks stay. */
set_pics:
    movb $0x11, %al
    outb %al, $0x20
    outb %al, $0xa0
    movb %bl, %al
    outb %al, $0x21
    movb %bh, %al
    outb %al, $0xa1
    movb $4, %al
    outb %al, $0x21
    movb $2, %al
    outb %al, $0xa1
    movb $1, %al
    outb %al, $0x21
    outb %al, $0xa1
    movb imr, %al
    outb %al, $0x21
    movb imr + 1, %al
    outb %al, $0xa1
    ret

/* -- The monitor -------------------------------------------------------------------------------- */

    .code32
    .balign 16
stubs:
    .set vector, 0
    .rept VECTORS
    .balign 16
    .if vector != 8 && (vector < 10 || vector > 14) && vector != 17
    pushl $0
    .endif
    pushl $vector
    jmp monitor
    .set vector, vector + 1
    .endr

    .balign 16
monitor:
    pushal
    movl $DATA32, %eax
    movl %eax, %ds
    movl %eax, %es
    cld
    cmpb $2, mode
    jne 1f
    btl $19, F_FLAGS(%esp)
    setc vif
1:  testl $VM, F_FLAGS(%esp)
    jz broken
    movl F_VECTOR(%esp), %eax
    cmpl $PIC_BASE, %eax
    jae hardware
    cmpl $13, %eax
    jne broken
    movl F_CS(%esp), %esi               /* ESI: the instruction */
    shll $4, %esi
    addl F_EIP(%esp), %esi
    movl F_ERROR(%esp), %eax
    testl %eax, %eax
    jz opcode
    testb $2, %al                       /* INT n, by its gate */
    jz broken
    shrl $3, %eax
    incl F_EIP(%esp)
    cmpb $0xcd, (%esi)
    jne soft
    incl F_EIP(%esp)
soft:
    incw soft_ints
    cmpl $EXIT, %eax
    je leave32
    call reflect
    jmp resume

hardware:
    incw hard_ints
    subl $PIC_BASE, %eax
    btsw %ax, pending
resume:
    call deliver_pending
    cmpb $2, mode
    jne 1f
    andl $~(VIF | VIP), F_FLAGS(%esp)
    cmpb $0, vif
    je 2f
    orl $VIF, F_FLAGS(%esp)
2:  cmpw $0, pending
    je 1f
    orl $VIP, F_FLAGS(%esp)             /* STI, POPF and IRET shall tell us */
1:  popal
    addl $8, %esp
    iretl

broken:
    movw $0xbad, result
    jmp leave32

/* Interrupts that wait, if the 8086 program takes them.  (The frame is four bytes further up.) */
deliver_pending:
    cmpw $0, pending
    je 1f
    cmpb $0, mode
    je 2f
    cmpb $0, vif
    je 1f
2:  bsfw pending, %ax
    btrw %ax, pending
    movzwl %ax, %eax
    addl $8, %eax
    cmpl $16, %eax
    jb 3f
    addl $0x70 - 16, %eax
3:  jmp reflect
1:  ret

/* EAX: vector; as the processor does it in real mode.  Called from one level. */
reflect:
    movl F_SS + 4(%esp), %edi
    shll $4, %edi
    movl F_ESP + 4(%esp), %edx
    subw $6, %dx
    movw %dx, F_ESP + 4(%esp)
    movzwl %dx, %edx
    addl %edx, %edi
    movl F_FLAGS + 4(%esp), %ecx
    call visible_flags
    movw %cx, 4(%edi)
    movw F_CS + 4(%esp), %cx
    movw %cx, 2(%edi)
    movw F_EIP + 4(%esp), %cx
    movw %cx, (%edi)
    movzwl (,%eax,4), %ecx
    movl %ecx, F_EIP + 4(%esp)
    movzwl 2(,%eax,4), %ecx
    movl %ecx, F_CS + 4(%esp)
    movb $0, vif
    cmpb $0, mode
    jne 1f
    andl $~IF, F_FLAGS + 4(%esp)
1:  andl $~0x100, F_FLAGS + 4(%esp)
    ret

/* ECX: flags as the 8086 program shall see them. */
visible_flags:
    cmpb $0, mode
    je 1f
    andl $~(IF | VIF | VIP), %ecx
    orl $0x3000, %ecx
    cmpb $0, vif
    je 1f
    orl $IF, %ecx
1:  andl $0x3ffff & ~VM & ~0x10000, %ecx
    ret

/* ECX: flags that the program loads. */
load_flags:
    btl $9, %ecx
    setc vif
    andl $0x4cd5, %ecx
    andl $~0x4cd5, F_FLAGS + 4(%esp)
    orl %ecx, F_FLAGS + 4(%esp)
    ret

/* #GP(0): what is it?  EBX: operand size in bytes. */
opcode:
    movl $2, %ebx
    lodsb
    incl F_EIP(%esp)
    cmpb $0x66, %al
    jne 1f
    movl $4, %ebx
    lodsb
    incl F_EIP(%esp)
1:  cmpb $0xf4, %al                     /* HLT: look again */
    je resume
    cmpb $0, mode
    je broken
    incw emulated
    movl F_SS(%esp), %edi               /* EDI: the top of its stack */
    shll $4, %edi
    movzwl F_ESP(%esp), %edx
    cmpb $0xcd, %al
    je do_int
    cmpb $0xfa, %al
    je do_cli
    cmpb $0xfb, %al
    je do_sti
    cmpb $0x9c, %al
    je do_pushf
    cmpb $0x9d, %al
    je do_popf
    cmpb $0xcf, %al
    je do_iret
    jmp broken
do_int:
    decw emulated
    xorl %eax, %eax
    lodsb
    incl F_EIP(%esp)
    jmp soft
do_cli:
    movb $0, vif
    jmp resume
do_sti:
    movb $1, vif
    jmp resume
do_pushf:
    movl F_FLAGS(%esp), %ecx
    call visible_flags
    subw %bx, %dx
    movw %dx, F_ESP(%esp)
    movw %cx, (%edi,%edx)
    cmpl $2, %ebx
    je resume
    movl %ecx, (%edi,%edx)
    jmp resume
do_popf:
    movl (%edi,%edx), %ecx
    addw %bx, F_ESP(%esp)
    call load_flags
    jmp resume
do_iret:
    addl %edx, %edi
    movzwl (%edi), %ecx
    movl %ecx, F_EIP(%esp)
    movzwl (%edi,%ebx), %ecx
    movl %ecx, F_CS(%esp)
    movl (%edi,%ebx,2), %ecx
    leal (%ebx,%ebx,2), %eax
    addw %ax, F_ESP(%esp)
    call load_flags
    jmp resume

/* -- In V86 mode -------------------------------------------------------------------------------- */

    .code16
v86_main:
    int $0x12
    cmpw %ax, memory
    jne 9f
    sti                                 /* IF as it is seen */
    pushfw
    popw %ax
    testw $IF, %ax
    jz 9f
    cli
    pushfl
    popl %eax
    testw $IF, %ax
    jnz 9f
    pushfw                              /* POPF sets it again */
    popw %ax
    orw $IF | 0x400, %ax
    pushw %ax
    popfw
    pushfw
    popw %ax
    cld
    andw $IF | 0x400, %ax
    cmpw $IF | 0x400, %ax
    jne 9f
    stc                                 /* a handler of our own, and its flags */
    movw $0x1233, %ax
    int $0x60
    jc 9f
    cmpw $0x1234, %ax
    jne 9f
    movl IVT_TICKS, %ebx                /* time goes on */
1:  hlt
    movl IVT_TICKS, %eax
    subl %ebx, %eax
    cmpl $3, %eax
    jb 1b
    movb $0, 0x6000                     /* the boot sector once more */
    movb drive, %dl
    movw $0x201, %ax
    movw $0x6000, %bx
    movw $1, %cx
    xorb %dh, %dh
    int $0x13
    jc 9f
    cld
    movw $0x7c00, %si
    movw $0x6000, %di
    movw $100, %cx
    repe cmpsb
    jne 9f
    movw $0x0003, %ax                   /* the screen */
    int $0x10
    movw $0x0e58, %ax
    movw $7, %bx
    int $0x10
    movw $0xb800, %ax
    movw %ax, %es
    cmpb $0x58, %es:0
    jne 9f
    movw $0xffff, %ax                   /* FFFF:0010 is 100000H, not 0 */
    movw %ax, %fs
    movb $0x5a, buffer
    movb $0xa5, %fs:buffer + 16
    cmpb $0x5a, buffer
    jne 9f
    movw $1, result
9:  int $EXIT

handler60:
    incw %ax
    pushw %bp
    movw %sp, %bp
    testw $IF, 6(%bp)                   /* what was pushed has IF, we have not */
    jz 1f
    pushfw
    testw $IF, -2(%bp)
    popw %bx
    jnz 1f
    andw $~1, 6(%bp)                    /* CF off */
1:  popw %bp
    iretw

    .balign 8
gdt:
    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00009b000000ffff, 0x000093000000ffff
    .word IOMAP + 0x2000, TSS & 0xffff, 0x8900 | TSS >> 16, 0
gdtr:
    .word . - gdt - 1
    .long gdt
idtr:
    .word 8 * VECTORS - 1
    .long IDT
real_idtr:
    .word 0x3ff
    .long 0
real_cr4:  .long 0
real_sp:   .word 0
memory:    .word 0
result:    .word 0
soft_ints: .word 0
hard_ints: .word 0
emulated:  .word 0
pending:   .word 0
imr:       .word 0
mode:      .byte 0
vif:       .byte 0
buffer:    .byte 0
    .org 512 * (SECTORS + 1)
