/*
 * A DOS-style real-mode program: BIOS services, interrupt handlers of its own, self-modifying code,
 * unreal mode, A20, VGA graphics.  How it is booted and reports is in bios_boot.inc.
 */
    .set SECTORS, 17
    .include "bios_boot.inc"

program:
    PART memory                         /* INT 12h; E820 begins with usable memory at 0 */
    int $0x12
    cmpw $600, %ax
    jb 1f
    movl $0xe820, %eax
    movl $0x534d4150, %edx
    movl $24, %ecx
    xorl %ebx, %ebx
    movw $buffer, %di
    int $0x15
    jc 1f
    cmpl $0x534d4150, %eax
    jne 1f
    cmpl $0, buffer
    jne 1f
    cmpl $1, buffer + 16
1:  UNLESS je

    PART timer                          /* our handler in front of the BIOS' */
    cli
    movl 4*8, %eax
    movl %eax, old_timer
    movw $timer, 4*8
    movw $0, 4*8+2
    sti
    movw $0, ticks
    xorb %ah, %ah
    int $0x1a
    movw %dx, %bx
1:  hlt
    cmpw $3, ticks
    jb 1b
    xorb %ah, %ah
    int $0x1a                           /* the BIOS has counted as well */
    subw %bx, %dx
    cli
    movl old_timer, %eax
    movl %eax, 4*8
    sti
    cmpw $2, %dx                        /* one may have come before it was asked first */
    UNLESS jae

    PART interrupts                     /* INT 60h, nested, and a divide error that is skipped */
    movw $handler60, 4*0x60
    movw $0, 4*0x60+2
    movw $handler61, 4*0x61
    movw $0, 4*0x61+2
    movl 4*0, %edx
    movw $divide, 4*0
    movw $0, 4*0+2
    movw $1, %ax
    stc
    int $0x60
    movl %eax, %ebx
    movw $0, %cx
    movw $100, %ax
    pushl %edx
    xorw %dx, %dx
    divw %cx                            /* two bytes, skipped by the handler */
    popl %edx
    movl %edx, 4*0
    cmpw $0x5a, %cx
    jne 1f
    cmpw $0x1112, %bx
1:  UNLESS je

    PART self_modifying                 /* a loop that counts in its own instruction */
    movw $1000, %cx
    xorw %dx, %dx
1:  incb 2f + 1
2:  movb $0, %al
    xorb %ah, %ah
    addw %ax, %dx
    loop 1b
    cmpw $(1000 / 256 * 32640 + (1000 % 256) * (1000 % 256 + 1) / 2) & 0xffff, %dx
    UNLESS je

    PART a20                            /* the BIOS' services: query, close, state, open, state */
    movw $0x2403, %ax
    int $0x15
    jc 1f
    testb %ah, %ah
    jnz 1f
    testb $3, %bl                       /* by the keyboard controller, by port 92h */
    jz 1f
    movw $0x2400, %ax
    int $0x15
    jc 1f
    call a20_open
    je 1f
    movw $0x2402, %ax
    int $0x15
    jc 1f
    testw %ax, %ax                      /* AH: success, AL: closed */
    jnz 1f
    movw $0x2401, %ax
    int $0x15
    jc 1f
    call a20_open
    jne 1f
    movw $0x2402, %ax
    int $0x15
    jc 1f
    cmpw $1, %ax
1:  UNLESS je

    PART a20_port92
    inb $0x92, %al
    movb %al, %bl                       /* open */
    andb $0xfc, %al
    outb %al, $0x92
    call a20_open
    je 1f
    inb $0x92, %al
    movb %al, %bh
    orb $2, %al
    outb %al, $0x92
    call a20_open
    jne 1f
    andw $0x0202, %bx
    cmpw $0x0002, %bx
1:  UNLESS je

    PART a20_keyboard                   /* its output port, read back; and the commands of its own */
    cli
    movb $0xdd, %al
    call kbc_output
    call a20_open
    je 1f
    call kbc_output_bit
    jnz 1f
    inb $0x92, %al                      /* one gate here, whoever moved it (PIIX would OR the two) */
    testb $2, %al
    jnz 1f
    movb $0xdf, %al
    call kbc_output
    call a20_open
    jne 1f
    call kbc_output_bit
    jz 1f
    call kbc_ready
    movb $0xdd, %al
    outb %al, $0x64
    call kbc_ready
    call a20_open
    je 1f
    inb $0x92, %al                      /* closed by one, opened by the other */
    orb $2, %al
    andb $0xfe, %al
    outb %al, $0x92
    call a20_open
    jne 1f
    call kbc_ready
    movb $0xdf, %al
    outb %al, $0x64
    call kbc_ready
    call a20_open
1:  sti
    UNLESS je

    PART a20_wraparound                 /* closed, code and strings beyond 1 MiB are those at 0 */
    cli
    movw $0xffff, %ax
    movw %ax, %fs
    movw %ax, %es
    movw $a20_sub, %si                  /* another routine where it is when the gate is open */
    movl $0xcb02b490, %fs:a20_sub + 16  /* nop; movb $2, %ah; lretw */
    xorl %ebx, %ebx
    movw $40, %cx                       /* often enough to be worth more than a first look */
2:  movw $0x2400, %ax
    int $0x15
    lcallw $0xffff, $a20_sub + 16
    movzbw %ah, %ax
    addw %ax, %bx
    movw $0x2401, %ax
    int $0x15
    lcallw $0xffff, $a20_sub + 16
    movb %ah, %al
    xorb %ah, %ah
    shlw $8, %ax
    addw %ax, %bx
    loop 2b
    cmpw $40 * 2 * 256 + 40 * 1, %bx
    jne 1f
    movw $0x2400, %ax
    int $0x15
    movw $0, %si                        /* the vector table, from its other address */
    movw $16, %di
    movw $1024, %cx
    repe cmpsb
    jne 3f
    movw %es:0xf, %ax                   /* a word that lies across */
    cmpb 0, %ah
3:  pushfw
    movw $0x2401, %ax
    int $0x15
    popfw
1:  sti
    UNLESS je
    xorw %ax, %ax
    movw %ax, %es

    PART unreal                         /* 4 GiB limits in real mode; they survive interrupts */
    cli
    lgdt gdtr
    movl %cr0, %eax
    orb $1, %al
    movl %eax, %cr0
    movw $8, %bx
    movw %bx, %fs
    andb $0xfe, %al
    movl %eax, %cr0
    sti
    movl $0x200000, %edi
    movl $0x12345678, %fs:(%edi)
    movl $0x300000, %edi
    movl $0x9abcdef0, %fs:(%edi)
    movb $1, %ah
    int $0x16
    movl $0x200000, %edi
    cmpl $0x12345678, %fs:(%edi)
    UNLESS je

    PART a20_all_of_memory              /* bit 20 of every address, not only the first one's */
    cli
    movl $0x200000, %edi
    movl $0x11111111, %fs:(%edi)
    addl $0x100000, %edi
    movl $0x22222222, %fs:(%edi)
    movw $0x2400, %ax
    int $0x15
    movl %fs:(%edi), %eax
    movl $0x33333333, %fs:4(%edi)
    pushl %eax
    movw $0x2401, %ax
    int $0x15
    popl %eax
    sti
    cmpl $0x11111111, %eax
    jne 1f
    cmpl $0x22222222, %fs:(%edi)
    jne 1f
    subl $0x100000, %edi
    cmpl $0x33333333, %fs:4(%edi)
1:  UNLESS je

    PART strings                        /* 64 KiB copied with wrapping offsets */
    movw $0x2000, %ax
    movw %ax, %es
    movw $0x3000, %ax
    movw %ax, %gs
    xorw %di, %di
    movw $0x8000, %cx
    xorw %ax, %ax
1:  stosw
    addw $3, %ax
    loop 1b
    pushw %ds
    movw $0x2000, %ax
    movw %ax, %ds
    movw $0x3000, %ax
    movw %ax, %es
    movw $0xfff0, %si
    movw $0xfff0, %di
    movw $0x8000, %cx
    rep movsw
    popw %ds
    cmpw $0xfff0, %di
    jne 2f
    cmpw $(0x4000 * 3) & 0xffff, %gs:0x8000
2:  UNLESS je
    xorw %ax, %ax
    movw %ax, %es

    PART disk                           /* the boot sector again, elsewhere */
    movb drive, %dl
    movw $0x201, %ax
    movw $0x6000, %bx
    movw $1, %cx
    xorb %dh, %dh
    int $0x13
    jc 1f
    movw $0x7c00, %si
    movw $0x6000, %di
    movw $100, %cx                      /* its code; the variables behind have changed */
    repe cmpsb
1:  UNLESS je

    PART graphics                       /* mode 13h: a gradient by memory, read by the BIOS */
    movw $0x0013, %ax
    int $0x10
    movw $0xa000, %ax
    movw %ax, %es
    xorw %di, %di
    movw $64000, %cx
1:  movw %di, %ax
    stosb
    loop 1b
    movb $0x0d, %ah
    xorb %bh, %bh
    movw $77, %cx
    movw $101, %dx
    int $0x10
    cmpb $(101 * 320 + 77) & 0xff, %al
    jne 2f
    movw $0x0c2a, %ax                   /* and a pixel by the BIOS, read from memory */
    movw $5, %cx
    movw $7, %dx
    int $0x10
    cmpb $0x2a, %es:7*320+5
2:  UNLESS je

    PART planar                         /* mode 12h: write mode 2 through two planes */
    movw $0x0012, %ax
    int $0x10
    movw $0x3ce, %dx
    movw $0x0205, %ax
    outw %ax, %dx
    movw $0x8008, %ax                   /* bit mask: the leftmost pixel */
    outw %ax, %dx
    movb %es:0, %al
    movb $0x0b, %es:0
    movw $0xff08, %ax
    outw %ax, %dx
    movw $0x0005, %ax
    outw %ax, %dx
    movw $0x0d00, %ax
    xorb %bh, %bh
    xorw %cx, %cx
    xorw %dx, %dx
    int $0x10
    cmpb $0x0b, %al
    UNLESS je

    PART text                           /* mode 3: the BIOS' characters are in B800 */
    movw $0x0003, %ax
    int $0x10
    movw $0x0e52, %ax
    movw $7, %bx
    int $0x10
    movw $0xb800, %ax
    movw %ax, %es
    cmpb $0x52, %es:0
    UNLESS je
    xorw %ax, %ax
    movw %ax, %es

    PART vbe
    movw $0x4f00, %ax
    movw $0x6000, %di
    movl $0x32454256, (%di)
    int $0x10
    cmpw $0x004f, %ax
    jne 1f
    cmpl $0x41534556, 0x6000
1:  UNLESS je

    jmp end

/* ZF if the A20 gate is open. */
a20_open:
    pushw %ax
    movw $0xffff, %ax
    movw %ax, %fs
    movb $0x11, buffer
    movb $0x22, %fs:buffer + 16
    cmpb $0x11, buffer
    popw %ax
    ret
/* What the BIOS' A20 test calls at FFFF:a20_sub + 10H. */
a20_sub:
    nop
    movb $1, %ah
    lretw
/* The keyboard controller has taken what it was sent. */
kbc_ready:
    pushw %ax
1:  inb $0x64, %al
    testb $2, %al
    jnz 1b
    popw %ax
    ret
/* AL to its output port. */
kbc_output:
    call kbc_ready
    pushw %ax
    movb $0xd1, %al
    outb %al, $0x64
    popw %ax
    call kbc_ready
    outb %al, $0x60
    jmp kbc_ready
/* ZF if bit 1 of its output port is 0. */
kbc_output_bit:
    call kbc_ready
    movb $0xd0, %al
    outb %al, $0x64
1:  inb $0x64, %al
    testb $1, %al
    jz 1b
    inb $0x60, %al
    testb $2, %al
    ret
timer:
    incw %cs:ticks
    ljmpw *%cs:old_timer
handler60:
    jnc 1f                              /* flags as they were, but IF */
    pushfw
    popw %cx
    testb $2, %ch
    jnz 1f
    incw %ax
    int $0x61
1:  iretw
handler61:
    addw $0x1110, %ax
    iretw
divide:
    pushw %bp
    movw %sp, %bp
    addw $2, 2(%bp)
    popw %bp
    movw $0x5a, %cx
    iretw

    .balign 8
gdt:
    .quad 0, 0x00cf93000000ffff
gdtr:
    .word 15
    .long gdt
old_timer: .long 0
ticks:     .word 0
buffer:    .skip 32
    .org 512 * (SECTORS + 1)
